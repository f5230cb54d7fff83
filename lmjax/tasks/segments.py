"""Sums over the places of a segment, for tasks that take one thing from many tokens: x_BTC, at every place what its
segment has."""

import jax
import jax.numpy as jnp


def same_segment(segments_BT: jax.Array) -> jax.Array:
    """(B, T, S): whether two places belong to one text."""
    return segments_BT[:, :, None] == segments_BT[:, None, :]


def segment_max(x_BTC: jax.Array, same_BTS: jax.Array) -> jax.Array:
    """At each place the largest of its segment."""
    return jnp.max(jnp.where(same_BTS[..., None], x_BTC[:, None], -jnp.inf), axis=2)


def segment_sum(x_BTC: jax.Array, same_BTS: jax.Array) -> jax.Array:
    """At each place the sum over its segment, in the precision of x on every device."""
    return jnp.einsum("BTS,BSC->BTC", same_BTS.astype(x_BTC.dtype), x_BTC, precision="highest")


def segment_mean(x_BTC: jax.Array, same_BTS: jax.Array) -> jax.Array:
    """At each place the mean over its segment, in the precision of x."""
    return segment_sum(x_BTC, same_BTS) / same_BTS.sum(-1, keepdims=True).astype(x_BTC.dtype)
