"""The gradient that is written out is the formula's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models import attention


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kv_heads", "window", "apart"), [(4, None, False), (2, 5, False), (1, None, True), (2, 9, True)]
)
def test_blocks_have_the_gradients_of_the_formula(kv_heads, window, apart, dtype):
    heads = (4, kv_heads, kv_heads)
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 24, n, 8)).astype(dtype) for i, n in enumerate(heads))
    segments_BT = jnp.array([[1] * 10 + [2] * 14, [1] * 3 + [2] * 11 + [3] * 10]) if apart else None
    out = jax.random.normal(jax.random.key(3), q.shape)

    def total(q, k, v, kernel):
        return (attention.attend(q, k, v, segments_BT, kernel, window=window).astype(jnp.float32) * out).sum()

    wanted = jax.jit(jax.grad(partial(total, kernel=attention.Reference()), (0, 1, 2)))(
        *(x.astype(jnp.float32) for x in (q, k, v))
    )
    ours = jax.jit(jax.grad(partial(total, kernel=attention.Blocks(size=7)), (0, 1, 2)))(q, k, v)
    for a, b in zip(ours, wanted, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=1e-5 if dtype == "float32" else 0.05)
