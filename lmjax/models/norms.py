"""LayerNorm (arXiv:1607.06450) and RMSNorm (arXiv:1910.07467), computed in float32."""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.models.tap import tap
from lmjax.sharding import weight


@dataclass(frozen=True, kw_only=True)
class LayerNorm:
    epsilon: float = 1e-5
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class RMSNorm:
    """offset: the learned scale is kept as its difference from 1, as Gemma does (arXiv:2403.08295)."""

    epsilon: float = 1e-5
    offset: bool = False


Norm = LayerNorm | RMSNorm


class Normalise(nn.Module):
    """x / its spread over the last axis, times a learned scale. `axis` is that axis's logical name."""

    norm: Norm
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = (x.shape[-1],)
        offset = isinstance(self.norm, RMSNorm) and self.norm.offset
        start = nn.initializers.zeros if offset else nn.initializers.ones
        scale = weight(self, "scale", start, (self.axis,), width)
        bias = None
        if isinstance(self.norm, LayerNorm) and self.norm.bias:
            bias = weight(self, "bias", nn.initializers.zeros, (self.axis,), width)
        function = partial(normalised, self.norm)
        if x.dtype != jnp.float32:
            # the backward pass makes the float32 copies of x again: kept, they would be four times its memory
            function = jax.checkpoint(function, prevent_cse=False)
        return tap(self, "hook_normalized", function(x, 1 + scale if offset else scale, bias))


def normalised(norm: Norm, x: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
    """In float32, and then as x: in bfloat16 a mean over a few thousand squares keeps two digits."""
    x32 = x.astype(jnp.float32)
    if isinstance(norm, LayerNorm):
        x32 = x32 - x32.mean(-1, keepdims=True)
    y = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + norm.epsilon) * scale
    return (y if bias is None else y + bias).astype(x.dtype)
