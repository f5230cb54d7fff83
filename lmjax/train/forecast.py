"""What the plan says before a run and what came of it after; and what helps where the memory is too small."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from lmjax.errors import UserError
from lmjax.experiment import Experiment
from lmjax.plan import report
from lmjax.plan.devices import GIB, of_this_machine
from lmjax.plan.planning import Plan, plan_on
from lmjax.plan.remedies import remedies


def forecast(experiment: Experiment, mesh: jax.sharding.Mesh, say) -> Plan:
    """Compile the step for this machine and say what it needs. Raises UserError where that is more than there is."""
    made = plan_on(experiment, of_this_machine(), mesh)
    if not made.fits:
        raise out_of_memory(made, say)
    say(f"plan: {report.verdict(made)}; {speed_line(made)}")
    return made


def speed_line(made: Plan) -> str:
    device, float32 = made.topology.device, made.experiment.model.dtype == "float32"
    rate, best = device.peak32 if float32 else device.peak, made.roofline
    return f"at best {made.tokens_per_second:,.0f} tokens/s, {best.bound}-bound ({rate / 1e12:.3g} TFLOP/s a device)"


@contextmanager
def telling_what_helps(made: Plan, say) -> Iterator[None]:
    """Turns a device's lack of memory while steps run into the ranked remedies and one UserError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        raise out_of_memory(made, say) from None


def out_of_memory(made: Plan, say) -> UserError:
    """The error to raise, once what could help was told."""
    say("out of memory; what could help, each compiled now:")
    ranked = remedies(made, lambda remedy: None, rounds=1)
    for remedy in ranked:
        say(report.remedy_line(remedy))
    first = f"; --{' --'.join(ranked[0].overrides)} is the first to try" if ranked else ""
    return UserError(f"out of memory: {report.verdict(made).removeprefix('memory: ')}{first}")


def graded(made: Plan, tokens_per_second: float) -> str:
    """Predicted beside measured."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        memory = f"{stats['peak_bytes_in_use'] / GIB:.2f} GiB in use at the most"
    else:
        memory = f"the process {_resident_peak() / GIB:.2f} GiB at the most, libraries included"
    best = made.tokens_per_second
    return (
        f"predicted and measured: at best {best:,.0f} tokens/s, {tokens_per_second:,.0f} "
        f"({tokens_per_second / best:.0%}); {made.needed / GIB:.2f} GiB a device, {memory}"
    )


def _resident_peak() -> int:
    """Bytes; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
