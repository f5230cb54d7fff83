"""What a run tells: metrics.jsonl, TensorBoard events, samples, and lines or a progress bar on the screen."""

import json
import math
import os
import sys
import time

import jax
from tensorboardX import SummaryWriter

from lmjax import hosts
from lmjax.errors import UserError
from lmjax.plan.counts import trained_flops_per_token
from lmjax.plan.devices import peak_flops
from lmjax.run_directory import RunDirectory

LINE_SECONDS = 5.0


class Screen:
    """Plain lines, or a progress bar on a terminal; of several processes process 0 alone shows them. A reader that goes
    away (| head) does not end the run."""

    def __init__(self, steps: int):
        self.steps = steps
        self.bar = None
        self._next_line = 0.0

    def say(self, text: str) -> None:
        """A line that is always shown."""
        if not hosts.first():
            return
        # generated text must not steer the terminal
        text = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
        try:
            if self.bar is not None:
                self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                print(text, flush=True)
        except BrokenPipeError:
            # what is written to it from now on, also by the interpreter on its way out, goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def begin(self, done: int) -> None:
        if not hosts.first() or not sys.stdout.isatty():
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("step {task.completed}/{task.total}"), BarColumn(), TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(), refresh_per_second=4,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=self.steps, completed=done, figures="")
        self.bar.start()

    def progress(self, step: int, loss: float, speed: float, left: float) -> None:
        figures = f"loss {loss:.4f}  {speed:,.0f} tokens/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, figures=figures)
        elif time.monotonic() >= self._next_line or step == self.steps:
            self._next_line = time.monotonic() + LINE_SECONDS
            self.say(f"step {step}/{self.steps}  {figures}  {_duration(left)} left")

    def end(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class Report:
    """Use as a context manager. `step` takes device scalars and looks at them one step later, so that the device
    never waits for the host."""

    def __init__(self, run: RunDirectory, experiment, done: int, screen: Screen):
        self.experiment, self.done, self.screen = experiment, done, screen
        self.tokens_per_step = experiment.tokens_per_step
        peak = peak_flops()
        self.token_share_of_peak = trained_flops_per_token(experiment) / peak if peak else None
        # the other processes look at the same figures, and stop at the same step where these are not finite
        writes = hosts.first()
        self._file = open(run.metrics, "a", encoding="utf-8") if writes else None
        self._samples = run.samples
        self._board = SummaryWriter(str(run.tensorboard), purge_step=done + 1 if done else None) if writes else None
        self._pending = None
        self._clock: float | None = None
        self._seconds: float | None = None

    def __enter__(self):
        self.screen.begin(self.done)
        return self

    def __exit__(self, *exception):
        self.screen.end()
        if self._file is not None:
            self._board.close()
            self._file.close()

    @property
    def tokens_per_second(self) -> float:
        """Of the last steps, a running mean."""
        return self.tokens_per_step / self._seconds if self._seconds else 0.0

    def step(self, step: int, metrics, rate: float, describe) -> None:
        """Take the metrics of a step just sent off, and write down those of the step before. Raises UserError where
        they are not finite; describe() then says which data the step had."""
        self._clock = self._clock or time.perf_counter()
        previous, self._pending = self._pending, (step, metrics, rate, describe)
        self._write(previous)

    def settle(self) -> None:
        """Write down all steps that were sent off. What happens until the next one is not training time."""
        previous, self._pending = self._pending, None
        self._write(previous)
        self._clock = None

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write down and show the figures of an evaluation. Raises UserError where the loss is not finite."""
        if not math.isfinite(metrics["eval_loss"]):
            raise UserError(f"step {step}: eval_loss {metrics['eval_loss']}; stopped before the state was saved")
        self._line({"step": step} | metrics)
        figures = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.screen.say(f"step {step}/{self.experiment.steps}  {figures}")

    def sample(self, step: int, text: str) -> None:
        if self._file is None:
            return
        with open(self._samples, "a", encoding="utf-8") as stream:
            stream.write(f"--- step {step}\n{text}\n")
        self._board.add_text("sample", text, step)

    def _write(self, pending) -> None:
        if pending is None:
            return
        step, metrics, rate, describe = pending
        metrics = jax.device_get(metrics)
        loss, norm = float(metrics.loss), float(metrics.grad_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(
                f"step {step}: loss {loss}, gradient norm {norm}; stopped before the state was saved. {describe()}"
            )
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        # the first steps of a process are slower; what is left of the time is told by a running mean
        self._seconds = seconds if self._seconds is None else 0.9 * self._seconds + 0.1 * seconds
        speed = self.tokens_per_step / seconds
        line = {
            "step": step, "loss": loss, "tokens": step * self.tokens_per_step, "tokens_per_second": round(speed, 1),
            "learning_rate": rate, "grad_norm": norm,
        }  # fmt: skip
        if metrics.routed is not None:
            # 1 is an equal load of all experts
            line |= {"balance": float(metrics.routed.balance), "router_z": float(metrics.routed.z)}
            if self.experiment.model.feedforward.capacity is not None:
                line["dropped"] = float(metrics.routed.dropped)
        if self.token_share_of_peak is not None:
            line["mfu"] = speed * self.token_share_of_peak
        self._line(line)
        left = (self.experiment.steps - step) * self._seconds
        self.screen.progress(step, loss, self.tokens_per_step / self._seconds, left)

    def _line(self, values: dict) -> None:
        if self._file is None:
            return
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        for name, value in values.items():
            if name != "step":
                self._board.add_scalar(name, value, values["step"])


def _duration(seconds: float) -> str:
    seconds = int(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
