"""Training, from an experiment to a finished run."""

import os
import signal
from functools import partial

import jax
import numpy as np
from jax.experimental import multihost_utils

from lmjax import checkpoint, configs, hosts, inherited, trained, trees
from lmjax.checkpoint import Checkpoints
from lmjax.errors import UserError
from lmjax.evaluate import compressors
from lmjax.evaluate.held_out import HeldOut, compile_loss, held_out
from lmjax.evaluate.samples import Samples
from lmjax.experiment import Experiment
from lmjax.loaded import read_texts
from lmjax.places import Place
from lmjax.run_directory import RunDirectory, commit, environment, versions
from lmjax.sharding import local_rows, place_batch
from lmjax.train import state as train_state
from lmjax.train.forecast import forecast, graded, telling_what_helps
from lmjax.train.prepare import Prepared, check_devices, in_force, prepare
from lmjax.train.reading import held_out_lines
from lmjax.train.reference import compared
from lmjax.train.report import Report, Screen
from lmjax.train.start import params_of
from lmjax.train.state import TrainState


class Stopped(Exception):
    """A signal asked the run to end; its state is saved. code: the exit code, 128 + the signal's number."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}, saved; the same command goes on")
        self.code = 128 + number


def train(experiment: Experiment, run_path: Place, *, accept_changes: bool = False) -> None:
    """Begin or go on with the run in `run_path`. Raises UserError, and Stopped after SIGTERM or Ctrl-C."""
    screen = Screen(experiment.steps)
    if hosts.count() > 1:
        hosts.check_equal("experiment", differing(experiment))
    with RunDirectory(run_path) as run:
        prepared, changes = begin_together(experiment, run, accept_changes)
        experiment = prepared.experiment
        with jax.set_mesh(prepared.mesh):
            state, frozen = resume(run, prepared, screen, changed=bool(changes))
            if int(state.step) == experiment.steps:
                screen.say(f"finished: step {experiment.steps} of {experiment.steps} in {run.path}; --steps=N goes on")
                return
            prepared = compared(prepared, run, state, frozen)
            screen.say(trees.table(state.params))
            for line in [" | ".join([in_force(prepared), *trained.told(experiment, state.params)]), *changes]:
                screen.say(line)
            run_steps(run, prepared, state, frozen, screen)


def differing(experiment: Experiment) -> dict[str, str]:
    """All that must be the same in every process, by name."""
    code = {f"the version of {name}": str(number) for name, number in versions().items()}
    code["the commit of the code"] = str(commit())
    return code | configs.flat(configs.to_tree(experiment))


def begin_together(experiment: Experiment, run: RunDirectory, accept_changes: bool) -> tuple[Prepared, list[str]]:
    """Process 0 makes ready what is shared, the others find it: tokenizer, token stores, the run directory. With the
    accepted changes."""

    def begin(known: list[str] | None):
        prepared = prepare(experiment, run, known)
        return prepared, open_run(run, prepared, accept_changes)

    if hosts.count() > 1:
        check_devices(experiment)
        run.check_place()
        hosts.check_shared(run.path)
    begun = begin(None) if hosts.first() else None
    known = hosts.by_first("data", lambda: begun[0].reading.fingerprints, hosts.READY_LIMIT)
    if begun is None:
        hosts.wait_until(lambda: run.exists, f"{run.path}: what process 0 has written")
        begun = begin(known)
    # nobody waits on a device, where waiting has a limit, for one that makes its token store
    hosts.gather("begun", True, hosts.READY_LIMIT)
    return begun


def run_steps(run: RunDirectory, prepared: Prepared, state: TrainState, frozen: dict, screen: Screen) -> None:
    """The loop. A step is sent off before the results of the one before are looked at, so the device never waits."""
    experiment, mesh = prepared.experiment, prepared.mesh
    done, steps = int(state.step), experiment.steps
    made, loss_of = forecast(experiment, mesh, screen.say), compile_loss(experiment)
    rates = np.asarray(jax.vmap(partial(experiment.schedule.rate, steps=steps))(np.arange(steps)))
    evaluated, tokenizer = prepared.reading.held_out, prepared.tokenizer
    samples = Samples(experiment, tokenizer, evaluated, prepared.reading.records)
    best = hosts.by_first("best", lambda: checkpoint.best_loss(run.checkpoints))
    here = local_rows(mesh, experiment.batch_size)
    place = partial(place_batch, mesh=mesh, rows=experiment.batch_size)
    # nor for one that has to compile
    hosts.gather("compiled", True, hosts.READY_LIMIT)
    with (
        StopSignals() as stop,
        Checkpoints(run.checkpoints, experiment.keep_checkpoints, run.upload) as checkpoints,
        Report(run, experiment, done, screen) as report,
        telling_what_helps(made, screen.say),
    ):
        for step, batch in prepared.batches.ahead(done + 1, steps, place, here):
            state, metrics = made.program(state, frozen, batch)
            report.step(step, metrics, float(rates[step - 1]), partial(describe, prepared, step))

            result = None
            if due(step, experiment.evaluate_every, steps):
                report.settle()
                model_params = trained.whole(experiment, state.params, frozen)
                result = held_out(experiment, loss_of, model_params, evaluated, mesh, tokenizer)
                report.evaluation(step, result.metrics() | samples.scores(model_params))
                run.upload()
            if due(step, experiment.sample_every, steps):
                report.settle()
                text = samples.text(trained.whole(experiment, state.params, frozen))
                report.sample(step, text)
            eval_loss = None if result is None else result.eval_loss
            better = eval_loss is not None and eval_loss < best
            stopping = stop.after(step)
            if better or stopping or due(step, experiment.checkpoint_every, steps):
                report.settle()
                kept = trained.stored(experiment, state.params, frozen)
                checkpoints.save(step, kept, state.rest, eval_loss)
                best = eval_loss if better else best
            if stopping and step < steps:
                checkpoints.wait()
                raise Stopped(stopping, step)
    summarise(run, result, text, screen)
    screen.say(graded(made, report.tokens_per_second))


def due(step: int, every: int, steps: int) -> bool:
    return step % every == 0 or step == steps


def open_run(run: RunDirectory, prepared: Prepared, accept_changes: bool) -> list[str]:
    """Lock the directory; begin the run, or make sure that it is this experiment's. The accepted changes."""
    run.lock()
    if run.exists:
        changes = run.compare(prepared.experiment, prepared.reading.remembered, accept_changes=accept_changes)
        steps = checkpoint.steps_on_disk(run.checkpoints)
        if any(change.startswith("steps:") for change in changes) and steps and steps[-1] > prepared.experiment.steps:
            raise UserError(f"--steps={prepared.experiment.steps}: {run.path} is already at step {steps[-1]}")
        return [f"changed since the run began: {change}" for change in changes]
    lines = held_out_lines(prepared.experiment, prepared.reading)
    run.begin(prepared.experiment, prepared.tokenizer, prepared.reading.remembered, lines)
    return []


def resume(run: RunDirectory, prepared: Prepared, screen: Screen, *, changed: bool) -> tuple[TrainState, dict]:
    """The state of the newest good checkpoint, on this mesh, or the one before the first step; and the parameters that
    are frozen."""
    experiment, mesh = prepared.experiment, prepared.mesh
    manifest, frozen = run.resumable(lambda text: screen.say(f"WARNING: {text}")), {}
    if manifest is None or experiment.adapter is not None:
        state, frozen = first_state(experiment, run, mesh, begun=manifest is not None)
    if manifest is None and experiment.init_from is not None:
        screen.say(inherited.told(experiment))
    if manifest is not None:
        state, others = train_state.restored(
            experiment, train_state.transform(experiment), mesh, partial(checkpoint.restore, run.checkpoints, manifest)
        )
        frozen = frozen or others
        screen.say(f"resuming {run.path} after step {manifest.step}")
    if changed and hosts.first():
        # it was accepted, and fits the checkpoint
        lines = held_out_lines(experiment, prepared.reading)
        run.write_experiment(experiment, prepared.reading.remembered, lines)
    run.write_json("environment.json", environment())
    run.cut(0 if manifest is None else manifest.step)
    run.upload()
    return state, frozen


def first_state(experiment: Experiment, run: RunDirectory, mesh, *, begun: bool) -> tuple[TrainState, dict]:
    """The state before the first step, and what is frozen: new, or of the model that init_from names. begun: whether
    the run has checkpoints, so that an adapter's base must be the one it began with."""
    if experiment.init_from is None:
        return train_state.compile_fresh(experiment, mesh)()
    optimizer = train_state.transform(experiment)
    where = train_state.shardings(experiment, optimizer, mesh)
    of_model = train_state.param_shardings(experiment.model, mesh)
    params = params_of(experiment, run, mesh, of_model, begun=begun)
    return jax.jit(partial(train_state.begun, experiment, optimizer), out_shardings=where, donate_argnums=0)(params)


def describe(prepared: Prepared, step: int) -> str:
    """Which data a step had, and how to see it."""
    starts = ", ".join(f"{a.part}:{a.start}" for a in prepared.batches.addresses(step)[:8])
    return (
        f"The batch of step {step} has the windows at source:token {starts} ...; "
        f"`run.py data --step {step}` with the same --config and changes shows it"
    )


def summarise(run: RunDirectory, result: HeldOut, text: str, screen: Screen) -> None:
    """The sample, the held-out figures beside a compressor's, and where everything is."""
    if not hosts.first():
        return
    screen.say(f"sample: {text}")
    if result.text_bytes is None:
        screen.say(f"held out: {result.tokens:,} predictions; {result.protocol}")
        screen.say(", ".join(f"{name} {value:.4f}" for name, value in result.metrics().items()))
    else:
        screen.say(f"held out: {result.tokens:,} tokens, {result.text_bytes:,} bytes; {result.protocol}")
        figures = {"this model": result.bits_per_byte}
        figures |= compressors.bits_per_byte("".join(read_texts(run.held_out)).encode())
        screen.say("bits per byte: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
        screen.say(f"loss {result.eval_loss:.4f} nats a token, perplexity {result.perplexity:.2f}")
    screen.say(f"written to {run.path}: checkpoints, metrics.jsonl, tensorboard, samples.txt, held_out.jsonl")


class StopSignals:
    """While open, SIGTERM and the first Ctrl-C are only noted; a second Ctrl-C interrupts. One that reaches one of
    several processes stops all after the same step, on which JAX's preemption service agrees; SIGTERM's handler is
    its own."""

    def __init__(self):
        self.number = 0
        self.several = hosts.count() > 1

    def __enter__(self):
        if self.several:
            hosts.preemption_begins()
        noted = (signal.SIGINT,) if self.several else (signal.SIGTERM, signal.SIGINT)
        self._before = {s: signal.signal(s, self._note) for s in noted}
        return self

    def after(self, step: int) -> int:
        """The signal for which all processes stop after this step; 0: none. To be called once a step."""
        if self.several and not multihost_utils.reached_preemption_sync_point(step):
            return 0
        return self.number or (signal.SIGTERM if self.several else 0)

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        if self.several:
            os.kill(os.getpid(), signal.SIGTERM)
