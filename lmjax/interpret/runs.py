"""Many runs of one model, each with another patch, in one compiled call: in chunks that are vmapped and that fit."""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.batching import Text
from lmjax.errors import UserError
from lmjax.interpret.capture import LOGITS, Model, Read, forward, read
from lmjax.models.packed import Packed

GIB = 2**30
# runs at one time at most: more fill no device better and wait longer for the first
MOST = 64
# of the memory that is free, what activations may take
SHARE = 0.5

Metric = Callable[[jax.Array], jax.Array]


class Pair(NamedTuple):
    """Two texts that differ in what is studied. params: of the model, layers stacked, so that the compiler reads one
    layer. clean, corrupt: what stands at each site. clean_metric, corrupt_metric: of their logits. seconds: one run."""

    params: dict
    rows: Read
    clean: dict[str, jax.Array]
    corrupt: dict[str, jax.Array]
    clean_metric: jax.Array
    corrupt_metric: jax.Array
    seconds: float

    def scaled(self, metric: jax.Array) -> jax.Array:
        """0 where the metric is that of the corrupt run, 1 where it is that of the clean one. Raises UserError where
        the two do not differ."""
        whole = self.clean_metric - self.corrupt_metric
        if whole == 0:
            raise UserError(
                f"the metric is {float(self.clean_metric)} of both texts; expected texts in which it differs"
            )
        return (metric - self.corrupt_metric) / whole


def pair(
    model: Model, clean: Text | jax.Array | Read, corrupt: Text | jax.Array | Read, metric: Metric,
    sites: tuple[str, ...],
) -> Pair:  # fmt: skip
    """Both runs. Raises UserError where they do not have equally many tokens, or the metric is no single number."""
    rows, others = read(model, corrupt), read(model, clean)
    if rows.shape != others.shape or rows.lengths is not None or others.lengths is not None:
        told = [f"{one.shape[0]} rows of {one.shape[1]}" for one in (others, rows)]
        raise UserError(
            f"clean is {told[0]} tokens and corrupt {told[1]}; expected equally many, in rows of one length"
        )
    params, names = stacked(model.params), (*sites, LOGITS)
    at_corrupt = jax.block_until_ready(forward(model.cfg, params, rows, names, {}))
    times = []
    for _ in range(2):
        begun = perf_counter()
        at_clean = jax.block_until_ready(forward(model.cfg, params, others, names, {}))
        times.append(perf_counter() - begun)
    metrics = [jnp.asarray(metric(found[LOGITS])) for found in (at_clean, at_corrupt)]
    if metrics[0].shape:
        raise UserError(f"the metric has shape {metrics[0].shape}; expected a single number")
    return Pair(params, rows, at_clean, at_corrupt, *metrics, min(times))


def stacked(params: dict) -> dict:
    """The parameters with "blocks" as one stack, which compiles as one layer; packed ones stay apart."""
    blocks = params["blocks"]
    leaves = jax.tree.leaves(blocks, is_leaf=lambda x: isinstance(x, Packed))
    if not isinstance(blocks, tuple) or any(isinstance(leaf, Packed) for leaf in leaves):
        return params
    return params | {"blocks": jax.tree.map(lambda *layers: jnp.stack(layers), *blocks)}


def run_all(
    told: str, one: Callable, arguments, count: int, *, model: Model, rows: Read, seconds: float, chunk: int | None,
    say: Callable[[str], None],
) -> jax.Array:  # fmt: skip
    """one(arguments, index) for each index below count, stacked; `say` hears of it before it begins. seconds: of one
    run alone. chunk: runs at one time; None: as many as fit."""
    free = free_memory()
    if chunk is None:
        chunk = int(max(1, min(MOST, count, SHARE * free // _bytes_of_a_run(model, rows))))
    elif chunk < 1:
        raise UserError(f"chunk is {chunk}; expected a positive number")
    while True:
        # what is left over of the last chunk computes the last run again: another size would be another program
        indices = jnp.minimum(jnp.arange(-(-count // chunk) * chunk), count - 1)
        every = jax.jit(lambda found, i, size=chunk: jax.lax.map(lambda j: one(found, j), i, batch_size=size))
        program = every.lower(arguments, indices).compile()
        memory = program.memory_analysis()
        needed = 0 if memory is None else memory.temp_size_in_bytes + memory.output_size_in_bytes
        if needed <= free or chunk == 1:
            break
        chunk = max(1, chunk // 2)
    say(f"{told} = {count} runs, {chunk} at one time: about {count * seconds:.1f} s, {needed / GIB:.2f} GiB")
    return program(arguments, indices)[:count]


def _bytes_of_a_run(model: Model, rows: Read) -> int:
    """Of activations, roughly: the compiler says it exactly afterwards."""
    cfg, (B, T, S) = model.cfg, rows.shape
    of_a_token = 2 * (cfg.vocab + cfg.hidden) + 12 * cfg.width + 2 * cfg.heads * min(T, 256)
    return 4 * B * (T + (S or 0)) * of_a_token


def free_memory() -> int:
    """Bytes on the first device; of a CPU, what the system says is available."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 4 * GIB
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 4 * GIB)
