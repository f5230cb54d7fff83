"""Optimizers and schedules against their papers in NumPy float64, or optax's own compositions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from lmjax import optim, trees
from lmjax.models import transformer
from lmjax.optim import Adafactor, AdamW, Constant, Cosine, InverseSquareRoot, Linear, Lion, Muon, WarmupStableDecay
from tests import tiny

SHAPES = {"a": {"kernel": (6, 4)}, "b": {"bias": (4,), "scale": (3,)}}


def run(optimizer, schedule, steps=10):
    """Parameters after some steps on made-up gradients, ours in float32; and the gradients."""
    rng = np.random.default_rng(0)
    shaped = lambda: jax.tree.map(lambda s: rng.normal(size=s), SHAPES, is_leaf=lambda s: isinstance(s, tuple))
    first, gradients = shaped(), [shaped() for _ in range(steps)]
    tx = optim.transform(optimizer, schedule, steps)
    params = jax.tree.map(jnp.float32, first)
    return first, gradients, updated(tx, params, gradients)


def updated(tx, params, gradients):
    @jax.jit
    def step(params, state, g):
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(tx.init)(params)
    for g in gradients:
        params, state = step(params, state, jax.tree.map(jnp.float32, g))
    return params


def clipped(g, limit):
    norm = math.sqrt(sum((x**2).sum() for x in jax.tree.leaves(g)))
    return jax.tree.map(lambda x: x * min(1.0, limit / norm), g)


def test_adamw_equals_float64():
    optimizer, schedule = AdamW(b1=0.8, b2=0.95, weight_decay=0.3, clip=0.7), Cosine(peak=0.1, warmup=0.3, floor=0.01)
    params, gradients, ours = run(optimizer, schedule)
    params = dict(trees.named_leaves(params))
    m, v = ({name: 0.0 for name in params} for _ in range(2))
    for t, g in enumerate(gradients, 1):
        g = dict(trees.named_leaves(clipped(g, 0.7)))
        rate = float(schedule.rate(t - 1, 10))
        for name in params:
            m[name] = 0.8 * m[name] + 0.2 * g[name]
            v[name] = 0.95 * v[name] + 0.05 * g[name] ** 2
            step = (m[name] / (1 - 0.8**t)) / (np.sqrt(v[name] / (1 - 0.95**t)) + 1e-8)
            decay = 0.3 if name == "a/kernel" else 0.0
            params[name] = params[name] - rate * (step + decay * params[name])
    for name, x in trees.named_leaves(ours):
        np.testing.assert_allclose(x, params[name], atol=1e-6)


def test_lion_equals_float64():
    optimizer, schedule = Lion(b1=0.9, b2=0.99, weight_decay=0.5, clip=None), Constant(peak=0.01)
    params, gradients, ours = run(optimizer, schedule)
    params = dict(trees.named_leaves(params))
    m = {name: 0.0 for name in params}
    for g in gradients:
        for name, g_ in trees.named_leaves(g):
            step = np.sign(0.9 * m[name] + 0.1 * g_)
            m[name] = 0.99 * m[name] + 0.01 * g_
            decay = 0.5 if name == "a/kernel" else 0.0
            params[name] = params[name] - 0.01 * (step + decay * params[name])
    for name, x in trees.named_leaves(ours):
        np.testing.assert_allclose(x, params[name], atol=1e-6)


def test_adafactor_equals_optax():
    schedule = Constant(peak=0.01)
    params, gradients, ours = run(Adafactor(min_factored=2), schedule)
    tx = optax.adafactor(0.01, min_dim_size_to_factor=2, multiply_by_parameter_scale=False, momentum=None)
    params = updated(tx, jax.tree.map(jnp.float32, params), gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, params)


def newton_schulz(x):
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T).T
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def test_muon_orthogonalises_each_layer_of_a_stack_alone():
    """Against NumPy float64, for kernels whose inputs or outputs are heads x head width."""
    cfg = tiny.llama(layers=2)
    params = tiny.params(cfg)
    optimizer = Muon(beta=0.9, adam_scale=0.5)
    tx = optim.transform(optimizer, Constant(peak=0.1), 10)
    # AdamW's eps is no part of what is tested: entries beside which it is nothing
    g = jax.tree.map(lambda x: 5 * x, tiny.params(cfg, 1))
    updates = jax.jit(lambda g, params: tx.update(g, tx.init(params), params)[0])(g, params)
    flat_g, flat_u = dict(trees.named_leaves(g)), dict(trees.named_leaves(updates))
    for name, rows in [
        ("blocks/attention/q/kernel", 32), ("blocks/attention/out/kernel", 32), ("blocks/feedforward/down/kernel", 48),
        ("blocks/attention/k/kernel", 32),
    ]:  # fmt: skip
        for layer in range(2):
            x = np.asarray(flat_g[name][layer], np.float64).reshape(rows, -1)
            # the first step of Nesterov momentum is a multiple of the gradient, which the division by the norm removes
            wanted = -0.1 * math.sqrt(max(1, x.shape[1] / x.shape[0])) * newton_schulz(x)
            np.testing.assert_allclose(flat_u[name][layer].reshape(rows, -1), wanted, atol=2e-5)
    # all else goes by AdamW, whose first step is the sign of the gradient
    for name in ("embedding", "unembedding", "final_norm/scale", "blocks/attention_norm/scale"):
        np.testing.assert_allclose(flat_u[name], -0.05 * np.sign(flat_g[name]), atol=1e-4)


def test_muon_orthogonalises_each_expert_alone_and_no_router():
    cfg = tiny.mixtral()
    params = tiny.params(cfg)
    tx = optim.transform(Muon(adam_scale=0.5), Constant(peak=0.1), 10)
    # AdamW's eps is no part of what is tested: entries beside which it is nothing
    g = jax.tree.map(lambda x: 5 * x, tiny.params(cfg, 1))
    updates = jax.jit(lambda g, params: tx.update(g, tx.init(params), params)[0])(g, params)
    ours, given = updates["blocks"]["feedforward"], g["blocks"]["feedforward"]
    for name in ("gate", "down"):
        x = np.asarray(given[name][1, 3], np.float64)
        wanted = -0.1 * math.sqrt(max(1, x.shape[1] / x.shape[0])) * newton_schulz(x)
        np.testing.assert_allclose(ours[name][1, 3], wanted, atol=2e-5)
    np.testing.assert_allclose(ours["router"], -0.05 * np.sign(given["router"]), atol=1e-5)


def test_muon_takes_the_matrices_of_both_stacks():
    names = trees.named_leaves(optim._muon_labels(transformer.abstract_params(tiny.translator())))
    muon = {name for name, label in names if label == "muon"}
    assert muon == {name for name, _ in names if name.endswith("/kernel")} and len(muon) == 10 + 6


def test_muon_equals_optax():
    params = {"blocks": {"w": {"kernel": jnp.ones((1, 6, 4))}}}
    dims = MuonDimensionNumbers((1,), (2,))
    theirs = optax.contrib.muon(0.1, beta=0.95, muon_weight_dimension_numbers={"blocks": {"w": {"kernel": dims}}})
    ours = optim.transform(Muon(), Constant(peak=0.1), 10)
    a, b = ours.init(params), theirs.init(params)
    update = [jax.jit(tx.update) for tx in (ours, theirs)]
    for seed in range(5):
        g = jax.tree.map(lambda x, seed=seed: jax.random.normal(jax.random.key(seed), x.shape), params)
        ua, a = update[0](g, a, params)
        ub, b = update[1](g, b, params)
        np.testing.assert_allclose(ua["blocks"]["w"]["kernel"], ub["blocks"]["w"]["kernel"], atol=1e-6)


def test_decay_touches_matrices_only():
    mask = dict(trees.named_leaves(optim.decay_mask(tiny.params(tiny.gpt2()))))
    decayed = {name for name, yes in mask.items() if yes}
    assert decayed == {
        "embedding", "positions", "blocks/attention/q/kernel", "blocks/attention/k/kernel",
        "blocks/attention/v/kernel", "blocks/attention/out/kernel", "blocks/feedforward/up/kernel",
        "blocks/feedforward/down/kernel",
    }  # fmt: skip
    assert len(mask) == 20


def nanogpt_get_lr(it, *, learning_rate, warmup_iters, lr_decay_iters, min_lr):
    """As in nanoGPT's train.py."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)


def test_cosine_equals_nanogpt():
    schedule = Cosine(peak=1e-3, warmup=0.05, floor=1e-4)
    every = np.arange(0, 2001, 7)
    for it, ours in zip(every, jax.vmap(lambda it: schedule.rate(it, 2000))(every), strict=True):
        theirs = nanogpt_get_lr(it, learning_rate=1e-3, warmup_iters=100, lr_decay_iters=2000, min_lr=1e-4)
        assert float(ours) == pytest.approx(theirs, abs=1e-9)


def test_other_schedules():
    rates = lambda schedule: [float(schedule.rate(i, 10)) for i in range(11)]
    assert rates(Constant(peak=2.0)) == [2.0] * 11
    np.testing.assert_allclose(rates(Linear(peak=1.0, floor=0.5)), np.linspace(1, 0.5, 11), rtol=1e-6)
    wanted = [0.5, *[1.0] * 6, 0.875, 0.75, 0.625, 0.5]
    stable = WarmupStableDecay(peak=1.0, warmup=0.1, decay=4 / 9, floor=0.5)
    np.testing.assert_allclose(rates(stable), wanted, rtol=1e-5)


def test_the_schedule_of_the_transformer():
    """arXiv:1706.03762, equation 3, from the end of its warm-up on."""
    width, warm, steps = 512, 4000, 100_000
    schedule = InverseSquareRoot(peak=(width * warm) ** -0.5, warmup=warm / steps)
    for step in (4000, 4001, 10_000, 99_999):
        theirs = width**-0.5 * min(step**-0.5, step * warm**-1.5)
        assert float(schedule.rate(step, steps)) == pytest.approx(theirs, rel=1e-5)
    assert float(schedule.rate(1999, steps)) == pytest.approx(width**-0.5 * 2000 * warm**-1.5, rel=1e-3)
    with pytest.raises(ValueError, match="warmup is 0"):
        InverseSquareRoot(peak=1.0)


@pytest.mark.parametrize("steps", [12, 13, 100, 5000])
def test_warmup_is_a_share_of_the_steps(steps):
    schedule = Cosine(peak=1.0, warmup=0.25)
    rates = np.asarray(jax.vmap(lambda step: schedule.rate(step, steps))(np.arange(steps)))
    assert rates.argmax() == round(0.25 * steps)
    assert rates.max() == 1.0
    assert (rates > 0).all()
