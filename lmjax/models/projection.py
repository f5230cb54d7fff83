"""A linear map that names its axes where its weight is born."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.models import quantised
from lmjax.models.packed import product
from lmjax.sharding import platform, weight


def contract(x: jax.Array, y: jax.Array, x_axes, y_axes) -> jax.Array:
    """The sum over these axes of x and of y, in x's dtype. On a CPU XLA's library multiplies bfloat16 as it is only
    where the sums stay float32; other backends round while they write, and sum in float32 all the same."""
    wide = jnp.float32 if platform() == "cpu" else None
    return jax.lax.dot_general(x, y, ((x_axes, y_axes), ((), ())), preferred_element_type=wide).astype(x.dtype)


@jax.custom_vjp
def affine(x: jax.Array, w_IO: jax.Array, b_O: jax.Array | None) -> jax.Array:
    """x @ w + b for x (..., I); None: no bias. The gradients are JAX's own, written as products that the CPU backend is
    quick at: it copies a transposed left side, so that should be the smaller one in float32, and sums rows one at a
    time."""
    return _plain(x, w_IO, b_O)


def _plain(x, w_IO, b_O):
    y = contract(x, w_IO, (x.ndim - 1,), (0,))
    return y if b_O is None else y + b_O


def _affine_forward(x, w_IO, b_O):
    # not `affine` itself: jax.checkpoint's policies would see a call here, and not the product in it
    return _plain(x, w_IO, b_O), (x, w_IO, b_O)


def _affine_backward(saved, dy):
    x, w_IO, b_O = saved
    rows = tuple(range(x.ndim - 1))
    dx = contract(dy, w_IO, (dy.ndim - 1,), (1,))
    x_RI, dy_RO = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    if x.dtype == jnp.bfloat16:
        # over (B, T) as they are: of rows that were made one axis, the CPU backend would not multiply bfloat16
        dw_IO = contract(x, dy, rows, rows)
    elif x.shape[-1] <= dy.shape[-1]:
        dw_IO = contract(x_RI, dy_RO, (0,), (0,))
    else:
        dw_IO = contract(dy_RO, x_RI, (0,), (0,)).T
    if b_O is None:
        return dx, dw_IO, None
    db_O = jnp.dot(jnp.ones(len(dy_RO), dy.dtype), dy_RO, preferred_element_type=jnp.float32)
    return dx, dw_IO, db_O.astype(dy.dtype)


affine.defvjp(_affine_forward, _affine_backward)


def mapped(x: jax.Array, w_IO: jax.Array, b_O: jax.Array | None, products: quantised.Products) -> jax.Array:
    """`affine`, or about it where the product is one of 8 bits."""
    if products == "plain":
        return affine(x, w_IO, b_O)
    y = quantised.product(x, w_IO, products)
    return y if b_O is None else y + b_O


class Projection(nn.Module):
    """Contract the last len(in_axes) axes of x with a weight (*in, *out); float32 weight, computed in x's dtype or in
    the numbers of `products`."""

    out: tuple[int, ...]
    in_axes: tuple[str, ...]
    out_axes: tuple[str, ...]
    std: float
    bias: bool
    products: quantised.Products = "plain"

    @nn.compact
    def weights(self, inner: tuple[int, ...]) -> tuple[jax.Array, jax.Array | None]:
        """The kernel (*inner, *out) and the bias (*out), or None."""
        start, axes = nn.initializers.normal(self.std), self.in_axes + self.out_axes
        kernel = weight(self, "kernel", start, axes, inner + self.out)
        return kernel, weight(self, "bias", nn.initializers.zeros, self.out_axes, self.out) if self.bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        cut = x.ndim - len(self.in_axes)
        if self.has_variable("params", "packed"):
            return self._by_packed(x, cut)
        kernel, bias = self.weights(x.shape[cut:])
        # one plain matrix product: XLA's CPU backend hands that to its fastest library, and not every einsum
        matrix_IO = kernel.astype(x.dtype).reshape(math.prod(x.shape[cut:]), math.prod(self.out))
        bias = None if bias is None else bias.astype(x.dtype).reshape(-1)
        y = mapped(x.reshape(*x.shape[:cut], -1), matrix_IO, bias, self.products)
        return y.reshape(*x.shape[:cut], *self.out)

    def _by_packed(self, x: jax.Array, cut: int) -> jax.Array:
        """As a call, for inference with the weights of models/packed.py."""
        y = product(x.reshape(*x.shape[:cut], -1), self.get_variable("params", "packed"))
        if self.bias:
            y = y + self.get_variable("params", "bias").reshape(-1)
        return y.astype(x.dtype).reshape(*x.shape[:cut], *self.out)
