"""Keys and values of the tokens read so far: an explicit argument and an explicit result."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lmjax.models.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerCache:
    """One slot a position; with a leading axis L where it holds all layers."""

    k_BSKH: jax.Array
    v_BSKH: jax.Array


def empty_cache(cfg: ModelConfig, batch: int, slots: int, *, stacked: bool) -> LayerCache | tuple[LayerCache, ...]:
    """Room for so many positions in every layer: k and v are (L, B, S, K, H), or (B, S, K, H) in a tuple of layers."""
    shape = (batch, slots, cfg.n_kv_heads, cfg.head_width)
    if stacked:
        return LayerCache(*(jnp.zeros((cfg.layers, *shape), cfg.dtype) for _ in range(2)))
    return tuple(LayerCache(jnp.zeros(shape, cfg.dtype), jnp.zeros(shape, cfg.dtype)) for _ in range(cfg.layers))


def slots(cache: LayerCache | tuple[LayerCache, ...]) -> int:
    """How many positions there is room for."""
    return (cache[0] if isinstance(cache, tuple) else cache).k_BSKH.shape[-3]


def append(cache: LayerCache, k_BTKH, v_BTKH, positions_BT) -> LayerCache:
    """Write each key and value into the slot of its position; positions outside the cache are dropped, not clamped."""

    def write(slots_SKH, new_TKH, positions_T):
        return slots_SKH.at[positions_T].set(new_TKH, mode="drop")

    return LayerCache(
        jax.vmap(write)(cache.k_BSKH, k_BTKH, positions_BT), jax.vmap(write)(cache.v_BSKH, v_BTKH, positions_BT)
    )
