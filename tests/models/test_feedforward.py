"""Hand-written derivatives equal JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models import feedforward
from lmjax.models.projection import product

X = np.linspace(-9, 9, 401, dtype=np.float32)


@pytest.mark.parametrize(("ours", "approximate"), [(feedforward.gelu, False), (feedforward.gelu_tanh, True)])
def test_gelu_and_its_slope(ours, approximate):
    with jax.enable_x64(True):
        exact = lambda x: jax.nn.gelu(x, approximate=approximate)
        x64 = jnp.asarray(X, jnp.float64)
        value, slope = jax.vmap(jax.value_and_grad(exact))(x64)
    np.testing.assert_allclose(ours(X), value, atol=1e-6)
    # the rounding of tanh near -1 is multiplied by up to x ** 3
    np.testing.assert_allclose(jax.vmap(jax.grad(ours))(X), slope, atol=2e-5)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_product_has_the_gradients_of_a_matrix_product(shape):
    x, w = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(2, 5, shape[0]), shape]))
    ours = jax.grad(lambda x, w: jnp.sin(product(x, w)).sum(), (0, 1))(x, w)
    theirs = jax.grad(lambda x, w: jnp.sin(x @ w).sum(), (0, 1))(x, w)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=2e-6)
