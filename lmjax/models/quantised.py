"""Matrix products of training in 8 bits, by Google's qwix (github.com/google/qwix; extra [quantized]).

As SwitchBack (arXiv:2304.13013, section 2.2): the product forward and the gradient of what comes in are of 8 bits; the
gradient of the weight, a sum over all tokens, is of the computation's dtype. A vector that comes in has one scale, and
so have the weights of one output (of one input, backward). fp8 is e4m3 forward and e5m2 for gradients
(arXiv:2209.05433, section 3).
"""

import importlib.util
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from lmjax.errors import UserError

Products = Literal["plain", "int8", "fp8"]
NUMBERS = {"int8": (jnp.int8, jnp.int8), "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2)}


def obstacle(products: Products, device) -> str | None:
    """Why this device has no such products, or None. The CPU has those of int8, and gains nothing by them."""
    if products == "plain":
        return None
    kind, capability = device.device_kind, str(getattr(device, "compute_capability", ""))
    match device.platform:
        case "tpu" if products == "int8":
            able = not any(old in kind for old in ("v2", "v3", "v4"))
        case "tpu":
            able = "v7" in kind or "TPU7" in kind
        case "gpu":
            number = capability.replace(".", "", 1)
            able = number.isdigit() and float(capability) >= (8.0 if products == "int8" else 8.9)
        case _:
            able = products == "int8"
    return None if able else f"{kind} has no matrix products of {products}"


def check(products: Products, device) -> None:
    """Raises UserError where these products cannot be computed here."""
    if reason := obstacle(products, device):
        raise UserError(f"model.products={products}: {reason}")


def check_package(products: Products) -> None:
    """Raises UserError where what computes these products is not installed."""
    if products != "plain" and importlib.util.find_spec("qwix") is None:
        raise UserError(f"model.products={products} needs qwix: python -m pip install -e '.[quantized]'")


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, w_IO: jax.Array, products: Products) -> jax.Array:
    """About x @ w for x (..., I), in x's dtype."""
    return _in_8_bits(x, w_IO, 0, *2 * NUMBERS[products][:1])


def _forward(x, w_IO, products):
    # not `product` itself: jax.checkpoint's policies would see a call here, and not the product in it
    return _in_8_bits(x, w_IO, 0, *2 * NUMBERS[products][:1]), (x, w_IO)


def _backward(products, saved, dy):
    x, w_IO = saved
    forward, gradient = NUMBERS[products]
    I, O = w_IO.shape
    dw_IO = jnp.einsum("RI,RO->IO", x.reshape(-1, I), dy.reshape(-1, O))
    return _in_8_bits(dy, w_IO, 1, gradient, forward), dw_IO


product.defvjp(_forward, _backward)


def _in_8_bits(x: jax.Array, w: jax.Array, axis: int, x_type, w_type) -> jax.Array:
    """The last axis of x contracted with that axis of w."""
    import qwix

    last = x.ndim - 1
    x_q = qwix.quantize(x, x_type, channelwise_axes=range(last), scale_dtype=jnp.float32)
    w_q = qwix.quantize(w, w_type, channelwise_axes=(1 - axis,), scale_dtype=jnp.float32)
    return qwix.dot_general(x_q, w_q, (((last,), (axis,)), ((), ()))).astype(x.dtype)
