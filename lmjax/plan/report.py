"""A plan as lines of text, each figure with the assumption behind it."""

import math
from collections.abc import Iterator

from lmjax.plan import published
from lmjax.plan.collectives import by_kind
from lmjax.plan.counts import (
    PETAFLOP_DAY,
    flops_per_token,
    params,
    params_by_part,
    passed_by,
    three_digits,
    work_per_token,
)
from lmjax.plan.devices import GIB, name_of
from lmjax.plan.memory import temporaries
from lmjax.plan.planning import Plan
from lmjax.plan.roofline import mfu

DAY = 86_400


def lines(made: Plan, price: float | None = None) -> Iterator[str]:
    """All of it. price: of a device and an hour, in whatever money."""
    yield from model_lines(made)
    yield from memory_lines(made)
    yield from wire_lines(made)
    yield from time_lines(made, price)


def model_lines(made: Plan) -> Iterator[str]:
    experiment, cfg = made.experiment, made.experiment.model_of_rows
    n, per_token, V = params(cfg), flops_per_token(cfg, experiment.source_length), cfg.vocab
    layers = f"{cfg.encoder_layers} + {cfg.layers}" if cfg.encoder_layers else f"{cfg.layers}"
    context = experiment.model.context
    yield f"{experiment.name}: {layers} layers, width {cfg.width}, context {context:,}, vocabulary {V:,}"
    parts = ", ".join(f"{part} {number:,}" for part, number in params_by_part(cfg).items())
    yield f"parameters: N = {n:,} ({parts})"
    tensor = made.mesh.shape["tensor"]
    if cfg.vocab % tensor:
        multiple = math.lcm(128, tensor)
        padded = -(-cfg.vocab // multiple) * multiple
        rows = (padded - cfg.vocab) * cfg.width * (1 if cfg.tied else 2)
        yield (
            f"  tensor {tensor} does not divide the vocabulary, which stays whole on each; "
            f"--model.vocab={padded} is split, with N = {n + rows:,}"
        )
    beside = f", with its share of {experiment.source_length} tokens of source" if cfg.encoder_layers else ""
    yield (
        f"FLOPs: {per_token:,} a token{beside}, {per_token * cfg.context:,} a sequence (6 N + 12 L H Q T, N without "
        "the position table and unused experts; PaLM, arXiv:2204.02311, appendix B)"
    )
    total = 6 * n * experiment.tokens
    yield (
        f"training: {experiment.tokens:,} tokens in {experiment.steps:,} steps of {experiment.batch_size:,} x "
        f"{cfg.context:,}; 6 N D = {three_digits(total)} FLOPs = {three_digits(total / PETAFLOP_DAY)} PF-days"
    )
    for line in published.beside(cfg):
        yield f"  {line}"


def memory_lines(made: Plan) -> Iterator[str]:
    experiment, device, size, figures = made.experiment, made.topology.device, made.size, made.figures
    sizes = " x ".join(f"{axis} {n}" for axis, n in made.mesh.shape.items() if n > 1) or "one device"
    count = f"{made.topology.count:,} x {device.kind}"
    yield f"devices: {made.topology.name}, {count}, {_gib(device.memory)} each; mesh {sizes}; attention {made.kernel}"
    yield (
        f"state on each: parameters {size.params:,} bytes, optimizer {size.optimizer:,} bytes, batch {size.batch:,} "
        "bytes (shapes and shardings)"
    )
    if figures is not None:
        padding = figures.arguments - size.params - size.optimizer - size.batch
        share = 100 * padding / figures.arguments
        yield (
            f"compiled in {figures.seconds:.0f} s: arguments {figures.arguments:,} bytes (of these {padding:,}, "
            f"{share:.2f} %, the step's number and layout), temporaries {figures.temporaries:,}, program "
            f"{figures.code:,}" + (f", on the host {figures.host:,}" if figures.host else "")
        )
    wanted = temporaries(experiment, made.mesh, size.trained)
    yield (
        f"temporaries by counts: {_gib(wanted.total)}: kept by remat {experiment.model.remat} {_gib(wanted.kept)}, "
        f"weights in {experiment.model.dtype} {_gib(wanted.weights)}, and the greater of float32 gradients "
        f"{_gib(wanted.gradients)} with one layer at work {_gib(wanted.layer)}, and the loss {_gib(wanted.loss)}"
    )
    yield verdict(made)


def verdict(made: Plan) -> str:
    """Whether the step fits, or by how much not."""
    memory = made.topology.device.memory
    if made.needed is None:
        return f"memory: does not fit into {_gib(memory)}; the compiler does not say by how much"
    how = "compiled" if made.compiled else "an estimate from counts; there is no compiler for these devices here"
    if made.fits:
        return f"memory: {_gib(made.needed)} of {_gib(memory)} on each device, fits ({how})"
    over = f"{_gib(made.needed - memory)} too much"
    return f"memory: {_gib(made.needed)} on each device, does not fit into {_gib(memory)}, {over} ({how})"


def wire_lines(made: Plan) -> Iterator[str]:
    kinds, how = by_kind(made.collectives), "compiled" if made.figures is not None else "counted from the split"
    if not kinds:
        yield "between devices: nothing"
    for kind, (count, sent) in sorted(kinds.items(), key=lambda item: -item[1][1]):
        yield f"between devices: {kind}, {count:,} a step, {_gib(sent)} sent by each device (by rings; {how})"


def time_lines(made: Plan, price: float | None) -> Iterator[str]:
    best, device, experiment = made.roofline, made.topology.device, made.experiment
    rate = device.peak if experiment.model.dtype == "bfloat16" else device.peak32
    work = work_per_token(experiment.model_of_rows, experiment.source_length)
    again = (
        f", {work.recomputed / work.total:.0%} of it recomputed (remat {experiment.model.remat})"
        if work.recomputed
        else ""
    )
    computed = work.total - 2 * passed_by(experiment)
    yield (
        f"a step at best: {best.step:.3g} s, {best.bound}-bound: compute {best.compute:.3g} s ({computed:.3g} FLOPs "
        f"a token{again}, at {rate / 1e12:.4g} TFLOP/s), "
        f"memory {best.memory:.3g} s (state, weights, kept activations at "
        f"{device.bandwidth / 1e9:.4g} GB/s), wires {best.wires:.3g} s "
        f"(rings over {device.link / 1e9:.4g} GB/s a link)"
    )
    measured = name_of(device.kind) is None
    whose = "rates measured on this machine just now" if measured else "the makers' rates"
    yield (
        f"  assumed: {whose}, all three at one time, nothing else; real steps take longer (MFU counts the whole square "
        "of attention, of which a causal kernel makes half)"
    )
    speed, seconds = made.tokens_per_second, experiment.steps * best.step
    hours = seconds / 3600 * made.topology.count
    utilisation = "" if measured else f", MFU {mfu(experiment, made.topology, best.step):.1%}"
    line = f"at best: {speed:,.0f} tokens/s{utilisation}, {_days(seconds)}, {hours:,.0f} device-hours"
    yield line + ("" if price is None else f", {hours * price:,.0f} at {price:g} an hour")


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{size / 2**20:.2f} MiB"


def _days(seconds: float) -> str:
    return f"{seconds / DAY:,.1f} days" if seconds >= DAY else f"{seconds / 3600:.2f} hours"


def remedy_line(remedy) -> str:
    """One change and what comes of it."""
    made = remedy.plan
    size = "more than there is" if made.needed is None else _gib(made.needed)
    words = " ".join(f"--{override}" for override in remedy.overrides)
    return f"  {words}: {size}, {'fits' if made.fits else 'does not fit'}, {made.roofline.step:.3g} s a step at best"
