"""Hand-written derivatives equal JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models import feedforward
from lmjax.models.projection import affine

X = np.linspace(-9, 9, 401, dtype=np.float32)


@pytest.mark.parametrize(("ours", "approximate"), [(feedforward.gelu, False), (feedforward.gelu_tanh, True)])
def test_gelu_and_its_slope(ours, approximate):
    with jax.enable_x64(True):
        exact = lambda x: jax.nn.gelu(x, approximate=approximate)
        x64 = jnp.asarray(X, jnp.float64)
        value, slope = jax.jit(jax.vmap(jax.value_and_grad(exact)))(x64)
    np.testing.assert_allclose(ours(X), value, atol=1e-6)
    # the rounding of tanh near -1 is multiplied by up to x ** 3
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(ours)))(X), slope, atol=2e-5)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_affine_has_the_gradients_of_a_matrix_product(shape, with_bias):
    draw = lambda i, shape: jax.random.normal(jax.random.key(i), shape)
    given = [draw(0, (2, 5, shape[0])), draw(1, shape), draw(2, shape[1:])][: 3 if with_bias else 2]
    wanted = tuple(range(len(given)))
    ours = jax.jit(jax.grad(lambda x, w, b=None: jnp.sin(affine(x, w, b)).sum(), wanted))(*given)
    theirs = jax.jit(jax.grad(lambda x, w, b=0.0: jnp.sin(x @ w + b).sum(), wanted))(*given)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=2e-6)
