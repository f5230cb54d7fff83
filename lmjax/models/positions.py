"""Where a token stands: Learned (GPT-2), Sinusoidal (arXiv:1706.03762, section 3.5), Rotary (arXiv:2104.09864)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A table of `context` vectors, added to the embedding."""

    needs_even_heads: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Sinusoidal:
    """Fixed sines and cosines, added to the embedding."""

    needs_even_heads: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Pairs (i, i + H/2) of queries and keys turned by position x theta^(-2i/H), transformers' order for Llama."""

    theta: float = 10_000.0
    needs_even_heads: ClassVar[bool] = True


Positions = Learned | Sinusoidal | Rotary


def sinusoid(positions_BT: jax.Array, width: int) -> jax.Array:
    """(B, T, width): sin in the even places, cos in the odd ones, wavelengths from 2 pi to 10,000 x 2 pi."""
    frequency = 10_000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle = positions_BT[..., None].astype(jnp.float32) * frequency
    pairs = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return pairs.reshape(*positions_BT.shape, -1)[..., :width]


def rotary_angles(positions_BT: jax.Array, head_width: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin, each (B, T, 1, H/2), in float32: in bfloat16 the angle at position 2,000 is wrong by radians."""
    frequency = theta ** (-jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    angle = positions_BT[..., None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNH: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turn each pair (i, i + H/2) by its angle."""
    cos, sin = angles
    left, right = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x_BTNH.dtype)
