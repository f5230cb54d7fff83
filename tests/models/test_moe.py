"""A mixture of experts: its losses and what it drops equal a NumPy reference; only training has a capacity."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models import moe
from lmjax.models.feedforward import Experts
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.classification import Classification
from lmjax.tasks.span_qa import SpanQA
from tests import tiny


@partial(jax.jit, static_argnames="chosen")
def of(logits_BTE, counted_BT, chosen):
    probability_BTE, _, experts_BTC = moe.route(logits_BTE, chosen)
    return moe.routing(logits_BTE, probability_BTE, experts_BTC, counted_BT, 0.0)


def reference(logits_BTE, counted_BT, chosen):
    """(balance, z, their gradients) in float64, token by token."""
    logits_RE = np.asarray(logits_BTE, np.float64)[counted_BT]
    R, E = logits_RE.shape
    share_E, mean_E, z, chances = np.zeros(E), np.zeros(E), 0.0, []
    for logits_E in logits_RE:
        top = logits_E.max()
        log_z = top + np.log(np.exp(logits_E - top).sum())
        p_E = np.exp(logits_E - log_z)
        share_E[np.argsort(-logits_E, kind="stable")[:chosen]] += 1 / (R * chosen)
        mean_E += p_E / R
        z += log_z**2 / R
        chances.append((p_E, log_z))
    d_balance, d_z = np.zeros(logits_BTE.shape), np.zeros(logits_BTE.shape)
    d_balance[counted_BT] = [E / R * p * (share_E - share_E @ p) for p, _ in chances]
    d_z[counted_BT] = [2 / R * log_z * p for p, log_z in chances]
    return E * share_E @ mean_E, z, d_balance, d_z


def random_logits(seed=0, shape=(3, 10, 5), scale=2.0):
    rng = np.random.default_rng(seed)
    return (scale * rng.normal(size=shape)).astype(np.float32), rng.random(shape[:2]) < 0.7


@pytest.mark.parametrize("chosen", [1, 2])
def test_the_routers_losses_and_their_gradients_equal_a_reference_in_float64(chosen):
    logits_BTE, counted_BT = random_logits()
    balance, z, d_balance, d_z = reference(logits_BTE, counted_BT, chosen)
    ours = of(logits_BTE, counted_BT, chosen)
    np.testing.assert_allclose([ours.balance, ours.z], [balance, z], rtol=1e-6)
    gradient = jax.jit(jax.jacrev(lambda x: of(x, counted_BT, chosen)))(logits_BTE)
    np.testing.assert_allclose(gradient.balance, d_balance, atol=1e-7)
    np.testing.assert_allclose(gradient.z, d_z, atol=1e-6)


def test_balance_is_1_for_a_uniform_router_and_count_for_a_collapsed_one():
    every_BT = np.ones((2, 15), bool)
    # nearly uniform, but each expert is the first choice of as many tokens
    uniform_BTE = 1e-6 * jax.nn.one_hot(np.arange(30).reshape(2, 15) % 5, 5)
    np.testing.assert_allclose(of(uniform_BTE, every_BT, 1).balance, 1, rtol=1e-5)
    collapsed_BTE = 50.0 * jax.nn.one_hot(np.zeros((2, 15), int), 5)
    np.testing.assert_allclose(of(collapsed_BTE, every_BT, 1).balance, 5, rtol=1e-5)


def expected(ff, x_BTD, counted_BT, params):
    """(y_BTD, the share that was dropped), one assignment after another in float64: all first choices, then all second
    ones, rows and places in order."""
    B, T, D = x_BTD.shape
    x_RD, counted_R = np.asarray(x_BTD, np.float64).reshape(-1, D), counted_BT.reshape(-1)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    logits_RE = x_RD @ p["router"]
    chances_RE = np.exp(logits_RE) / np.exp(logits_RE).sum(-1, keepdims=True)
    order_RC = np.argsort(-logits_RE, axis=-1, kind="stable")[:, : ff.chosen]
    room = int(np.ceil(ff.capacity * ff.chosen * B * T / ff.count))
    load, y_RD, dropped = np.zeros(ff.count, int), np.zeros_like(x_RD), 0
    for choice in range(ff.chosen):
        for row in np.flatnonzero(counted_R):
            expert = order_RC[row, choice]
            load[expert] += 1
            if load[expert] > room:
                dropped += 1
                continue
            gate = x_RD[row] @ p["gate"][expert]
            h = gate / (1 + np.exp(-gate)) * (x_RD[row] @ p["up"][expert])
            share = chances_RE[row, expert] / chances_RE[row, order_RC[row]].sum()
            y_RD[row] += share * (h @ p["down"][expert])
    return y_RD.reshape(B, T, D), dropped / (counted_R.sum() * ff.chosen)


@pytest.mark.parametrize("capacity", [0.3, 0.8])
def test_what_is_over_the_capacity_is_dropped_as_a_reference_says(capacity):
    ff = Experts(count=5, chosen=2, width=24, capacity=capacity)
    x_BTD, counted_BT = random_logits(shape=(3, 10, 32), scale=1.0)
    cfg = tiny.mixtral(feedforward=ff)
    params = jax.tree.map(lambda x: x[0], tiny.params(cfg)["blocks"]["feedforward"])
    y_BTD, routing = jax.jit(moe.ExpertsLayer(cfg).apply)({"params": params}, x_BTD, counted_BT)
    wanted_BTD, dropped = expected(ff, x_BTD, counted_BT, params)
    assert dropped > 0.02
    np.testing.assert_allclose(routing.dropped, dropped, atol=1e-6)
    np.testing.assert_allclose(y_BTD, wanted_BTD, atol=1e-5 * np.abs(wanted_BTD).max())


@pytest.fixture(scope="module")
def model():
    cfg = tiny.mixtral()
    return cfg, tiny.params(cfg), tiny.batch(cfg, 4, apart=True, ragged=True)


def with_capacity(cfg, capacity):
    return replace(cfg, feedforward=replace(cfg.feedforward, capacity=capacity))


def test_a_large_capacity_equals_dropless(model):
    cfg, params, batch = model

    def gradient(cfg):
        return jax.jit(jax.value_and_grad(lambda p: CausalLM().training_loss(cfg, p, batch, None).objective))(params)

    (loss, grads), (other_loss, other) = gradient(cfg), gradient(with_capacity(cfg, 2.5))
    np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(grads))
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * largest)


def test_only_training_drops_and_has_the_routers_losses(model):
    cfg, params, batch = model
    narrow = with_capacity(cfg, 0.3)
    task = CausalLM()
    here = (batch.tokens_BT, batch.positions_BT)
    assert (tiny.hidden(cfg, params, *here)[0] == tiny.hidden(narrow, params, *here)[0]).all()
    held_out_loss = jax.jit(task.held_out_loss, static_argnums=0)
    plain = jax.jit(task.training_loss, static_argnums=0)(narrow, params, batch, None)
    held_out = held_out_loss(narrow, params, batch)
    assert plain.routed.dropped > 0.1 * plain.weight
    assert abs(plain.total - held_out.total) > 1e-3
    assert held_out.routed is None
    assert held_out.total == held_out_loss(cfg, params, batch).total


@pytest.mark.parametrize("task", [CausalLM(), Classification(labels=("a", "b")), SpanQA()])
def test_the_routers_losses_are_sums_over_what_is_predicted(model, task):
    cfg, _, batch = model
    ff = replace(cfg.feedforward, balance=0.3, router_z_loss=0.07)
    cfg, key = replace(cfg, feedforward=ff, outputs=task.outputs), jax.random.key(0)
    params = tiny.params(cfg)
    batch = replace(batch, targets_BT=batch.targets_BT % 2, segments_BT=jnp.ones_like(batch.tokens_BT))
    training_loss = jax.jit(task.training_loss, static_argnums=0)
    loss = training_loss(cfg, params, batch, key)
    routed = jax.tree.map(lambda x: x / loss.weight, loss.routed)
    np.testing.assert_allclose(routed.penalty, cfg.layers * (0.3 * routed.balance + 0.07 * routed.z), rtol=1e-5)
    assert loss.objective == loss.total + loss.routed.penalty
    none = replace(batch, weights_BT=jnp.zeros_like(batch.weights_BT))
    assert training_loss(cfg, params, none, key).objective == 0
