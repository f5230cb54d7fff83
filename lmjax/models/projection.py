"""A linear map that names its axes where its weight is born."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.sharding import named


class Projection(nn.Module):
    """Contract the last len(in_axes) axes of x with a weight (*in, *out); float32 weight, computed in x's dtype."""

    out: tuple[int, ...]
    in_axes: tuple[str, ...]
    out_axes: tuple[str, ...]
    std: float
    bias: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner = x.shape[x.ndim - len(self.in_axes) :]
        init = named(nn.initializers.normal(self.std), self.in_axes + self.out_axes)
        kernel = self.param("kernel", init, inner + self.out)
        # one plain matrix product: XLA's CPU backend hands that to its fastest library, and not every einsum
        matrix = kernel.astype(x.dtype).reshape(math.prod(inner), math.prod(self.out))
        rows = x.shape[: x.ndim - len(inner)]
        y = (x.reshape(*rows, math.prod(inner)) @ matrix).reshape(*rows, *self.out)
        if self.bias:
            init = named(nn.initializers.zeros, self.out_axes)
            y = y + self.param("bias", init, self.out).astype(x.dtype)
        return y
