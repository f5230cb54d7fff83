"""Matrices in fewer bytes, for inference: a token that is written reads every weight once, and waits for memory.

bfloat16 halves the bytes of float32. int8 quarters them: a row of the matrix (all weights of one output) shares a step,
and so does a vector that comes in, after which the product is one of whole numbers (LLM.int8, arXiv:2208.07339, section
2.1, without its outliers). What else there is (norms, biases, the residual stream) stays float32.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

Weights = Literal["float32", "bfloat16", "int8"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """matrix_OI: bfloat16 or int8. step_O: what 1 stands for in each row of int8; None for bfloat16."""

    matrix_OI: jax.Array
    step_O: jax.Array | None


def quantised(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(whole numbers from -127 to 127 in int8, the step) of vectors (..., I); x is about whole * step."""
    step = jnp.maximum(jnp.max(jnp.abs(x), axis=-1), 1e-30) / 127
    return jnp.round(x / step[..., None]).astype(jnp.int8), step


def pack(matrix_OI: jax.Array, weights: Weights) -> Packed:
    """The matrix in bfloat16 or int8, rounded to nearest."""
    assert weights in ("bfloat16", "int8"), weights
    if weights == "bfloat16":
        return Packed(matrix_OI.astype(jnp.bfloat16), None)
    return Packed(*quantised(matrix_OI))


def product(x: jax.Array, packed: Packed) -> jax.Array:
    """(..., I) to (..., O): x @ matrix^T, in float32."""
    rows_RI = x.reshape(-1, x.shape[-1])
    R = len(rows_RI)
    if R == 1:
        # XLA's CPU backend has quick kernels for these products, but not of a single row: 3.7 ms against 0.3
        rows_RI = jnp.concatenate([rows_RI, rows_RI])
    over_I = (((1,), (1,)), ((), ()))
    if packed.step_O is None:
        y_RO = jax.lax.dot_general(
            rows_RI.astype(jnp.bfloat16), packed.matrix_OI, over_I, preferred_element_type=jnp.float32
        )
    else:
        whole_RI, step_R = quantised(rows_RI)
        sums_RO = jax.lax.dot_general(whole_RI, packed.matrix_OI, over_I, preferred_element_type=jnp.int32)
        y_RO = sums_RO.astype(jnp.float32) * (step_R[:, None] * packed.step_O)
    return y_RO[:R].reshape(*x.shape[:-1], -1)
