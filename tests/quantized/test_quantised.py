"""Training with matrix products of 8 bits, by qwix."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models import quantised, transformer
from lmjax.optim import AdamW, Constant, transform
from lmjax.tasks.causal_lm import CausalLM
from lmjax.train import state as train_state
from lmjax.train.step import update
from tests import tiny


@pytest.mark.parametrize(("products", "bound"), [("int8", 0.02), ("fp8", 0.08)])
def test_product_and_gradients_are_near_those_of_float32(products, bound):
    """And not the same: were nothing rounded, the error would be 0."""
    x, w, dy = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, 8, 64), (64, 32), (2, 8, 32)])
    )
    exact, exact_back = jax.vjp(lambda x, w: x @ w, x, w)
    y, back = jax.vjp(lambda x, w: quantised.product(x, w, products), x, w)
    for near, far in [(y, exact), (back(dy)[0], exact_back(dy)[0])]:
        error = jnp.abs(near - far).max() / jnp.abs(far).max()
        assert 1e-5 < error < bound
    np.testing.assert_allclose(back(dy)[1], exact_back(dy)[1], rtol=1e-4, atol=1e-4)


def test_the_program_has_products_of_int8():
    cfg = tiny.llama(products="int8")
    params, batch = transformer.init_params(cfg, jax.random.key(0)), tiny.batch(cfg, 2)
    text = str(jax.make_jaxpr(jax.grad(lambda p: CausalLM().training_loss(cfg, p, batch, None).total))(params))
    assert "preferred_element_type=int32" in text and "i8[" in text


@pytest.mark.parametrize("changes", [{}, {"remat": "products"}])
def test_training_follows_float32(changes):
    """Twenty steps on one batch: the loss falls by nats, and ends within 5 % of float32's."""

    def losses(products):
        cfg = tiny.gpt2(products=products, **changes)
        exp = tiny.experiment("unused", model=cfg, microbatches=1)
        optimizer = transform(AdamW(), Constant(peak=3e-3), 20)
        (state, frozen), batch = train_state.fresh(exp, optimizer), tiny.batch(cfg, 8)
        step = jax.jit(lambda state: update(exp, optimizer, None, state, frozen, batch))
        seen = []
        for _ in range(20):
            state, metrics = step(state)
            seen.append(float(metrics.loss))
        return np.array(seen)

    plain, rounded = losses("plain"), losses("int8")
    assert plain[-1] < plain[0] - 1
    assert (plain != rounded).any()
    np.testing.assert_allclose(rounded, plain, rtol=0.05)


def test_inference_reads_the_same_parameters():
    cfg = tiny.gpt2()
    params, batch = transformer.init_params(cfg, jax.random.key(0)), tiny.batch(cfg, 2)
    run = lambda cfg: transformer.hidden(cfg, params, batch.tokens_BT, batch.positions_BT)[0]
    exact, near = run(cfg), run(replace(cfg, products="int8"))
    assert np.abs(exact - near).max() < 0.1 * np.abs(exact).max()
