"""Cross-entropy against float64, and its sums."""

from dataclasses import replace
from functools import partial

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models import transformer
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.loss import LOGIT_BYTES, cross_entropy, loss_chunk, vocabulary_loss
from tests import tiny


def oracle(logits, targets, weights, smoothing=0.0, z_loss=0.0):
    logits = np.asarray(logits, np.float64)
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    V = logits.shape[-1]
    total = 0.0
    for index in np.ndindex(*targets.shape):
        wanted = np.full(V, smoothing / V)
        wanted[targets[index]] += 1 - smoothing
        nats = -(wanted * (logits[index] - log_z[index])).sum() + z_loss * log_z[index] ** 2
        total += nats * weights[index]
    return total


@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.2, 1e-3)])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_equals_float64(smoothing, z_loss, scale):
    rng = np.random.default_rng(0)
    logits = (scale * rng.normal(size=(2, 5, 11))).astype(np.float32)
    targets, weights = rng.integers(0, 11, (2, 5)), rng.integers(0, 2, (2, 5)).astype(np.float32)
    loss = cross_entropy(logits, targets, weights, label_smoothing=smoothing, z_loss=z_loss)
    np.testing.assert_allclose(loss.total, oracle(logits, targets, weights, smoothing, z_loss), rtol=1e-6)
    assert loss.weight == weights.sum()


def test_uniform_logits_give_ln_v():
    loss = cross_entropy(jnp.zeros((3, 65)), jnp.arange(3), jnp.ones(3))
    assert float(loss.mean()) == pytest.approx(np.log(65), abs=1e-6)


def test_untrained_model_starts_at_ln_v():
    cfg = tiny.gpt2(init_std=0.02)
    params = transformer.init_params(cfg, jax.random.key(0))
    loss = jax.jit(partial(CausalLM().held_out_loss, cfg))(params, tiny.batch(cfg, 8))
    assert float(loss.mean()) == pytest.approx(np.log(97), abs=0.1)


def test_nothing_to_predict_is_zero_not_nan():
    loss = cross_entropy(jnp.zeros((2, 5)), jnp.zeros(2, int), jnp.zeros(2))
    assert float(loss.mean()) == 0.0


def test_smoothing_and_z_loss_are_for_training_only():
    cfg = tiny.gpt2()
    params, batch = transformer.init_params(cfg, jax.random.key(0)), tiny.batch(cfg, 2)

    @jax.jit
    def both(params):
        """(held out, in training), plain and odd."""
        tasks = CausalLM(), CausalLM(label_smoothing=0.1, z_loss=0.1)
        return [
            (task.held_out_loss(cfg, params, batch).total, task.training_loss(cfg, params, batch, None).total)
            for task in tasks
        ]

    plain, odd = both(params)
    assert plain[0] == odd[0] == plain[1] != odd[1]


def test_chunks_give_the_same_loss_and_gradient():
    cfg = tiny.gpt2()
    params, batch = transformer.init_params(cfg, jax.random.key(0)), tiny.batch(cfg, 3, ragged=True)

    def loss(params, chunk):
        return CausalLM(loss_chunk=chunk, z_loss=1e-3).training_loss(cfg, params, batch, None).total

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    whole, gradient = run(params, None)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(gradient))
    for chunk in (1, 8):
        part, other = run(params, chunk)
        np.testing.assert_allclose(part, whole, rtol=1e-6)
        differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), gradient, other)
        assert max(jax.tree.leaves(differences)) < 1e-5 * largest


def test_chunks_never_hold_more_than_a_chunk_of_logits():
    """No array of the whole program, backward pass included, is as large as the logits of two chunks."""
    B, T, D, V, chunk = 2, 64, 8, 1000, 8
    hidden, matrix = jnp.ones((B, T, D)), jnp.ones((V, D))

    def largest(chunk):
        def loss(hidden, matrix):
            return vocabulary_loss(hidden, matrix, jnp.zeros((B, T), int), jnp.ones((B, T)), chunk=chunk).total

        sizes = []

        def visit(jaxpr):
            for equation in jaxpr.eqns:
                sizes.extend(v.aval.size for v in equation.outvars)
                for inner in jex.jaxprs_in_params(equation.params):
                    visit(inner)

        visit(jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, matrix).jaxpr)
        return max(sizes)

    assert largest(None) >= B * T * V
    assert largest(chunk) < 2 * B * chunk * V


def test_gradients_of_bfloat16_chunks_are_summed_in_float32():
    """Two chunks and eight give the same sums, which they would not in bfloat16, near the exact gradient."""
    B, T, D, V = 2, 64, 16, 50
    hidden = jax.random.normal(jax.random.key(0), (B, T, D)).astype(jnp.bfloat16)
    matrix = jax.random.normal(jax.random.key(1), (V, D)).astype(jnp.bfloat16).astype(jnp.float32)

    def gradient(hidden, chunk):
        def loss(matrix):
            return vocabulary_loss(hidden, matrix, jnp.zeros((B, T), int), jnp.ones((B, T)), chunk=chunk, cap=9.0).total

        return jax.jit(jax.grad(loss))(matrix)

    exact, eight, two = gradient(hidden.astype(jnp.float32), None), gradient(hidden, 8), gradient(hidden, 32)
    assert eight.dtype == jnp.float32
    largest = np.abs(exact).max()
    assert np.abs(eight - two).max() < 1e-6 * largest
    assert np.abs(eight - exact).max() < 4e-3 * largest


def test_auto_takes_all_places_or_the_most_that_fit():
    places = LOGIT_BYTES // (4 * 128_256)
    assert loss_chunk(12, 64, 65, {}) is None
    assert loss_chunk(1, places, 128_256, {}) is None
    assert loss_chunk(1, 8192, 128_256, {}) == 512
    # each device has its share of rows, places and vocabulary; GPT-2's 50,257 entries do not divide
    assert loss_chunk(8, 8192, 128_256, {"data": 8, "fsdp": 1, "tensor": 2}) == 1024
    assert loss_chunk(1, 8192, 128_256, {"sequence": 4}) == 2048
    assert loss_chunk(96, 1024, 50_257, {"fsdp": 8, "tensor": 2}) == 64
    # no chunk is small enough, or divides among the devices of a row but this
    assert loss_chunk(10_000, 96, 128_256, {"sequence": 8}) == 8
    assert loss_chunk(1, 8191, 128_256, {}) == 1


def test_auto_asks_the_mesh_in_use():
    task, none = CausalLM(), CausalLM(loss_chunk=None)
    assert task.chunk(8, 8192, 128_256) == 64
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert task.chunk(8, 8192, 128_256) == 512
    assert none.chunk(8, 8192, 128_256) is None


def test_label_shift_happens_once():
    """A model that copies the next token has no loss; one that copies its input does."""
    cfg = tiny.gpt2()
    batch = tiny.batch(cfg, 1)
    rows = np.arange(cfg.context)
    knows_next, repeats = np.zeros((1, cfg.context, cfg.vocab)), np.zeros((1, cfg.context, cfg.vocab))
    knows_next[0, rows[:-1], batch.tokens_BT[0, 1:]] = 100
    repeats[0, rows, batch.tokens_BT[0]] = 100
    weights = np.ones((1, cfg.context))
    weights[0, -1] = 0
    batch = replace(batch, weights_BT=weights)
    assert cross_entropy(knows_next, batch.targets_BT, weights).total < 1e-3
    assert cross_entropy(repeats, batch.targets_BT, weights).total > 1000
