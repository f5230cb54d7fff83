"""A linear map that names its axes where its weight is born."""

import math

import flax.linen as nn
import jax

from lmjax.sharding import named


@jax.custom_vjp
def product(x: jax.Array, w_IO: jax.Array) -> jax.Array:
    """x @ w for x (..., I). The gradient of w is the same product as JAX's own, written so that the CPU backend, which
    has to copy a transposed left side, copies the smaller one."""
    return x @ w_IO


def _product_forward(x, w_IO):
    return x @ w_IO, (x, w_IO)


def _product_backward(saved, dy):
    x, w_IO = saved
    I, O = w_IO.shape
    x_RI, dy_RO = x.reshape(-1, I), dy.reshape(-1, O)
    rows = (((0,), (0,)), ((), ()))
    dw_IO = jax.lax.dot_general(x_RI, dy_RO, rows) if I <= O else jax.lax.dot_general(dy_RO, x_RI, rows).T
    return dy @ w_IO.T, dw_IO


product.defvjp(_product_forward, _product_backward)


class Projection(nn.Module):
    """Contract the last len(in_axes) axes of x with a weight (*in, *out); float32 weight, computed in x's dtype."""

    out: tuple[int, ...]
    in_axes: tuple[str, ...]
    out_axes: tuple[str, ...]
    std: float
    bias: bool

    @nn.compact
    def weights(self, inner: tuple[int, ...]) -> tuple[jax.Array, jax.Array | None]:
        """The kernel (*inner, *out) and the bias (*out), or None."""
        kernel = named(nn.initializers.normal(self.std), self.in_axes + self.out_axes)
        bias = named(nn.initializers.zeros, self.out_axes)
        return (
            self.param("kernel", kernel, inner + self.out),
            self.param("bias", bias, self.out) if self.bias else None,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        cut = x.ndim - len(self.in_axes)
        kernel, bias = self.weights(x.shape[cut:])
        # one plain matrix product: XLA's CPU backend hands that to its fastest library, and not every einsum
        matrix_IO = kernel.astype(x.dtype).reshape(math.prod(x.shape[cut:]), math.prod(self.out))
        y = product(x.reshape(*x.shape[:cut], -1), matrix_IO).reshape(*x.shape[:cut], *self.out)
        return y if bias is None else y + bias.astype(x.dtype)
