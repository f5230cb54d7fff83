"""The verb `plan`: the plan of an experiment as text, what helps where it does not fit, and the search for a batch."""

import json
import math
import os
from pathlib import Path

import jax

from lmjax import experiment as experiments
from lmjax.checkpoint import write_whole
from lmjax.errors import UserError, path_text
from lmjax.plan import report, scaling
from lmjax.plan.counts import params, trained_flops_per_token
from lmjax.plan.devices import HERE, topology_of
from lmjax.plan.planning import Plan, largest_batch, plan
from lmjax.plan.remedies import remedies
from lmjax.plan.report import remedy_line


def run(options, changes: list[str]) -> int:
    """Raises UserError. The exit code: 0, or 1 where the step does not fit."""
    if options.compute is not None:
        if not 1e12 <= options.compute <= 1e33:
            raise UserError(f"--compute {options.compute:g}: expected a number of FLOPs from 1e12 to 1e33, as 1e21")
        if changes or options.config or options.json:
            raise UserError("--compute stands alone, without --config, --json or changes of an experiment")
        print("\n".join(scaling.lines(options.compute)))
        return 0
    if options.config is None:
        raise UserError("plan: expected --config FILE, or --compute FLOPS")
    if options.price is not None and not 0 <= options.price < math.inf:
        raise UserError(f"--price {options.price}: expected 0 or more")
    if (options.json and not Path(options.json).absolute().parent.is_dir()) or Path(options.json or "x").is_dir():
        raise UserError(f"--json {path_text(options.json)}: expected a file in a directory that exists")
    experiment = experiments.load(options.config, changes)
    name = options.topology or experiment.topology or HERE
    if name != HERE:
        want_no_accelerator()
    topology = topology_of(name)
    made = plan(experiment, topology)
    for line in report.lines(made, options.price):
        print(line, flush=True)
    if options.json:
        write_whole(Path(options.json), json.dumps(as_dict(made), indent=2) + "\n")
    if made.compiled and (not made.fits or options.remedies):
        show_remedies(made)
    elif options.remedies or not made.fits:
        print("remedies: none, since there is no compiler for these devices here")
    if options.search:
        show_search(experiment, topology)
    return 0 if made.fits else 1


def want_no_accelerator() -> None:
    """Planning for a pod wants no device of this machine, and must not ask the network which pod this is."""
    quiet = {
        "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0",
        "TPU_ACCELERATOR_TYPE": "v5p-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3",
    }  # fmt: skip
    for variable, value in quiet.items():
        os.environ.setdefault(variable, value)
    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")


def show_remedies(made: Plan) -> None:
    """Each is told when it is compiled, and all of them again in order."""
    print("what could help, each compiled:", flush=True)
    ranked = remedies(made, lambda remedy: print(remedy_line(remedy), flush=True))
    print("the best first:" if ranked else "nothing: this experiment has no change left that saves memory")
    for remedy in ranked:
        print(remedy_line(remedy))


def show_search(experiment, topology) -> None:
    def tell(one: Plan) -> None:
        print(f"  batch_size {one.experiment.batch_size:,}: {report.verdict(one)}", flush=True)

    print("the largest batch that fits, by compiling:", flush=True)
    best = largest_batch(experiment, topology, tell)
    if best is None:
        print("none: one row on each device does not fit")
        return
    size = best.experiment.batch_size
    print(
        f"--batch_size={size}: {size * best.experiment.length:,} tokens a step, "
        f"{best.tokens_per_second:,.0f} tokens/s at best"
    )


def as_dict(made: Plan) -> dict:
    """The figures by name, in bytes, seconds and FLOPs."""
    experiment, best = made.experiment, made.roofline
    figures = {
        "experiment": experiment.name, "kernel": made.kernel, "topology": made.topology.name,
        "mesh": dict(made.mesh.shape), "remat": experiment.model.remat,
        "parameters": params(experiment.model), "flops_per_token": trained_flops_per_token(experiment),
        "tokens": experiment.tokens, "fits": made.fits, "needed_bytes": made.needed,
        "device_bytes": made.topology.device.memory, "parameter_bytes": made.size.params,
        "optimizer_bytes": made.size.optimizer, "batch_bytes": made.size.batch,
        "compute_seconds": best.compute, "memory_seconds": best.memory, "wire_seconds": best.wires,
        "step_seconds": best.step, "tokens_per_second": made.tokens_per_second,
    }  # fmt: skip
    if made.figures is not None:
        figures |= {"argument_bytes": made.figures.arguments, "temporary_bytes": made.figures.temporaries}
    return figures
