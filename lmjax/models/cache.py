"""Keys and values of the tokens read so far: an explicit argument and an explicit result."""

from dataclasses import dataclass, replace
from itertools import pairwise

import jax
import jax.numpy as jnp

from lmjax.models.config import ModelConfig

# what is read of a cache grows in steps of this factor, from so many slots on
FIRST, FACTOR = 128, 4


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SourceKeys:
    """Keys and values, computed once, of the source's tokens that a layer of a decoder attends to. there_BS: which are
    tokens and no padding. B: rows of the source, of each of which the cache may have several side by side (beams)."""

    keys_BKSH: jax.Array
    values_BKSH: jax.Array
    there_BS: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerCache:
    """One slot a position, in segments: slots up to 128, up to 512, up to 2048, ... are arrays of their own, so that
    those that are filled are read without a copy. Each is (B, K, S, H), which products read as it lies; with a leading
    axis L where it holds all layers. source: of a decoder that has an encoder."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    source: SourceKeys | None = None

    @property
    def ends(self) -> list[int]:
        """The slot after the last of each segment."""
        return segment_ends(sum(x.shape[-2] for x in self.keys))


def segment_ends(slots: int) -> list[int]:
    ends = []
    while FIRST * FACTOR ** len(ends) < slots:
        ends.append(FIRST * FACTOR ** len(ends))
    return [*ends, slots]


def empty_cache(cfg: ModelConfig, batch: int, slots: int, *, stacked: bool) -> LayerCache | tuple[LayerCache, ...]:
    """Room for so many positions in every layer: one cache with all layers, or a tuple with one a layer."""

    def layer(*leading) -> LayerCache:
        sizes = [stop - start for start, stop in pairwise([0, *segment_ends(slots)])]
        shapes = [(*leading, batch, cfg.n_kv_heads, size, cfg.head_width) for size in sizes]
        return LayerCache(*(tuple(jnp.zeros(shape, cfg.dtype) for shape in shapes) for _ in range(2)))

    return layer(cfg.layers) if stacked else tuple(layer() for _ in range(cfg.layers))


def slots(cache: LayerCache | tuple[LayerCache, ...]) -> int:
    """How many positions there is room for."""
    return (cache[0] if isinstance(cache, tuple) else cache).ends[-1]


def taken(cache: LayerCache | tuple[LayerCache, ...], rows_R: jax.Array) -> LayerCache | tuple[LayerCache, ...]:
    """The cache with these rows in this order; the source is left as it is."""
    if isinstance(cache, tuple):
        return tuple(_taken(layer, rows_R, 0) for layer in cache)
    return _taken(cache, rows_R, 1)


def _taken(cache: LayerCache, rows_R: jax.Array, axis: int) -> LayerCache:
    keys, values = (tuple(jnp.take(x, rows_R, axis=axis) for x in xs) for xs in (cache.keys, cache.values))
    return replace(cache, keys=keys, values=values)


def append(cache: LayerCache, k_BTKH, v_BTKH, positions_BT) -> LayerCache:
    """Write each key and value into the slot of its position; positions outside the cache are dropped, not clamped."""

    def write(slots_KSH, new_TKH, slots_T):
        return slots_KSH.at[:, slots_T].set(new_TKH.swapaxes(0, 1), mode="drop")

    def all_segments(segments, new_BTKH):
        written, start = [], 0
        for segment_BKSH in segments:
            size = segment_BKSH.shape[2]
            # a negative number would count from the end
            slots_BT = jnp.where(positions_BT < start, size, positions_BT - start)
            written.append(jax.vmap(write)(segment_BKSH, new_BTKH, slots_BT))
            start += size
        return tuple(written)

    keys, values = all_segments(cache.keys, k_BTKH), all_segments(cache.values, v_BTKH)
    return LayerCache(keys, values, cache.source)
