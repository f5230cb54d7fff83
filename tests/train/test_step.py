"""The step: the same on any mesh and in any number of microbatches, compiled once, with sums before means."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import optim, trees
from lmjax.experiment import DataConfig
from lmjax.models.attention import Blocks
from lmjax.models.config import Span
from lmjax.optim import AdamW, Constant, Muon
from lmjax.sharding import Mesh, build_mesh, place_batch
from lmjax.tasks.causal_lm import CausalLM
from lmjax.train import state as train_state
from lmjax.train.step import compile_step, grads_and_loss
from tests import tiny

MESHES = {
    "data": Mesh(data=8), "fsdp": Mesh(data=1, fsdp=8), "tensor": Mesh(data=4, tensor=2),
    "mixed": Mesh(data=2, fsdp=2, tensor=2), "sequence": Mesh(data=1, fsdp=2, sequence=4),
}  # fmt: skip


def experiment(cfg, apart=False, **changes):
    documents = "apart" if apart else "joined"
    base = tiny.experiment("unused", model=cfg, data=DataConfig(documents=documents), microbatches=1)
    return replace(base, **{"optimizer": AdamW(clip=1.0), "schedule": Constant(peak=1e-2)} | changes)


def start(exp, mesh):
    optimizer = optim.transform(exp.optimizer, exp.schedule, exp.steps)
    where = train_state.shardings(exp, optimizer, mesh)
    state, _ = jax.jit(partial(train_state.begun, exp, optimizer), out_shardings=where)(tiny.drawn(exp.model))
    return state, optimizer


def train(exp, mesh_config, devices, steps, batch_of):
    """(losses, gradient norms, final parameters) after some steps."""
    mesh = build_mesh(mesh_config, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        state, optimizer = start(exp, mesh)
        step = compile_step(exp, optimizer, mesh)
        seen = []
        for index in range(steps):
            state, metrics = step(state, {}, place_batch(batch_of(index), mesh))
            seen.append(jax.device_get(metrics))
        assert step._cache_size() == 1
    return [float(m.loss) for m in seen], [float(m.grad_norm) for m in seen], jax.device_get(state.params)


def worst(a, b):
    """The largest difference in any leaf, as a share of the largest entry of all."""
    largest = max(np.abs(x).max() for x in jax.tree.leaves(a))
    return max(np.abs(x - y).max() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)) / largest


@pytest.fixture(scope="module")
def on_one_device():
    cfg = tiny.llama(vocab=96, dropout=0.1, width=64, context=16)
    # the large eps makes steps smooth: AdamW's first ones are signs, which amplify rounding near 0
    exp = experiment(cfg, apart=True, optimizer=AdamW(eps=1e-2))
    return exp, train(exp, Mesh(), 1, 3, lambda i: tiny.batch(cfg, 8, seed=i, apart=True, ragged=True))


# in "mixed" are the axes of "fsdp" and of "tensor"
@pytest.mark.parametrize("name", ["data", "mixed", "sequence"])
def test_eight_devices_equal_one(name, on_one_device):
    """With dropout on: the same masks whatever the mesh."""
    exp, (losses, norms, params) = on_one_device
    batch_of = lambda i: tiny.batch(exp.model, 8, seed=i, apart=True, ragged=True)
    other_losses, other_norms, other = train(exp, MESHES[name], 8, 3, batch_of)
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    np.testing.assert_allclose(other_norms, norms, rtol=1e-5)
    assert worst(params, other) < 1e-5


def test_rows_split_over_devices_equal_whole_rows():
    """Keys from other devices, windows that reach into them, and the loss by chunks."""
    cfg = tiny.llama(vocab=96, width=64, context=16, pattern=(Span(), Span(window=6)), kernel=Blocks(size=3))
    exp = experiment(cfg, apart=True, optimizer=AdamW(eps=1e-2), task=CausalLM(loss_chunk=4))
    batch_of = lambda i: tiny.batch(cfg, 2, seed=i, apart=True, ragged=True)
    losses, norms, params = train(exp, Mesh(), 1, 3, batch_of)
    other_losses, other_norms, other = train(exp, Mesh(data=1, sequence=4, tensor=2), 8, 3, batch_of)
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    np.testing.assert_allclose(other_norms, norms, rtol=1e-5)
    assert worst(params, other) < 1e-5


def test_initial_state_is_bitwise_the_same_on_any_mesh():
    """Of Muon, whose state has the arrays of both of its optimizers."""
    exp = experiment(tiny.llama(vocab=96, width=64), optimizer=Muon())
    one = jax.device_get(train_state.compile_fresh(exp, build_mesh(Mesh(), jax.devices()[:1]))())
    for name in ("fsdp", "mixed", "sequence"):
        many = jax.device_get(train_state.compile_fresh(exp, build_mesh(MESHES[name]))())
        for (path, a), (_, b) in zip(trees.named_leaves(one), trees.named_leaves(many), strict=True):
            assert (a == b).all(), (name, path)


def test_weights_and_moments_are_really_split():
    exp = experiment(tiny.llama(vocab=96, width=64))
    state, _ = start(exp, build_mesh(MESHES["mixed"]))
    leaves = dict(trees.named_leaves(state))
    for name in ("params/embedding", "params/blocks/feedforward/up/kernel", "params/blocks/attention/q/kernel"):
        moment = next(path for path in leaves if "/mu/" in path and path.endswith(name.removeprefix("params")))
        for leaf in (leaves[name], leaves[moment]):
            assert leaf.addressable_shards[0].data.size * 4 == leaf.size, name


def gradients(exp, batch):
    run = jax.jit(lambda params: grads_and_loss(exp, params, {}, batch, jax.random.key(0)))
    grads, loss = run(tiny.params(exp.model))
    return jax.tree.map(lambda g: g / loss.weight, grads), loss


def test_microbatches_with_unequal_token_counts_equal_one():
    cfg = tiny.gpt2()
    batch = tiny.batch(cfg, 8, ragged=True)
    rows = batch.weights_BT.sum(-1)
    assert rows.max() > 2 * rows.min()
    whole, loss = gradients(experiment(cfg), batch)
    for count in (2, 8):
        parts, summed = gradients(experiment(cfg, microbatches=count), batch)
        np.testing.assert_allclose(summed.mean(), loss.mean(), rtol=1e-6)
        assert worst(whole, parts) < 1e-5


def test_a_microbatch_without_targets_adds_nothing():
    cfg = tiny.gpt2()
    batch = tiny.batch(cfg, 4)
    weights = batch.weights_BT.copy()
    weights[[1, 3]] = 0
    whole, _ = gradients(experiment(cfg, batch_size=2), jax.tree.map(lambda x: x[[0, 2]], batch))
    parts, _ = gradients(experiment(cfg, batch_size=4, microbatches=2), replace(batch, weights_BT=weights))
    assert worst(whole, parts) < 1e-5


def test_dropout_differs_between_steps_rows_and_microbatches():
    cfg = tiny.gpt2(dropout=0.5)
    exp = experiment(cfg)
    batch = jax.tree.map(lambda x: np.repeat(x[:1], 4, axis=0), tiny.batch(cfg, 4))

    def rows(key):
        return tiny.hidden(cfg, tiny.params(cfg), batch.tokens_BT, batch.positions_BT, dropout_key=key)[0]

    steps = [rows(jax.random.fold_in(jax.random.key(exp.seed), step)) for step in (0, 1, 0)]
    assert (steps[0] == steps[2]).all()
    assert (steps[0] != steps[1]).any()
    assert all((steps[0][0] != steps[0][row]).any() for row in (1, 2, 3))
    # the same row in every microbatch: were the key the same, so would be the losses, and their sum a multiple
    halves = experiment(cfg, batch_size=4, microbatches=4)
    one = experiment(cfg, batch_size=1)
    _, four = gradients(halves, batch)
    _, first = gradients(one, jax.tree.map(lambda x: x[:1], batch))
    assert abs(float(four.total) - 4 * float(first.total)) > 1e-3


def test_each_step_has_its_own_dropout():
    """A step size too small to change anything, the same batch: only the masks differ."""
    cfg = tiny.gpt2(dropout=0.5)
    exp = experiment(cfg, schedule=Constant(peak=1e-30))
    losses, _, _ = train(exp, Mesh(), 1, 3, lambda _: tiny.batch(cfg, 8))
    assert len(set(losses)) == 3


def test_layers_drop_different_units():
    """Two blocks whose weights are the same: with one mask for both, dropping in the first or in the second layer
    only would be the same."""
    cfg = tiny.gpt2(dropout=0.5, layers=2)
    params = tiny.params(cfg)
    silent = jax.tree.map(jnp.zeros_like, params["blocks"])
    bias = jnp.ones_like(silent["feedforward"]["down"]["bias"])
    tokens_BT = jnp.zeros((1, 4), int)

    def dropped(layer):
        """Where this layer, which adds a constant to every unit, is dropped."""
        only = bias * (jnp.arange(2) == layer)[:, None]
        blocks = silent | {
            "feedforward": silent["feedforward"] | {"down": silent["feedforward"]["down"] | {"bias": only}}
        }
        return tiny.hidden(cfg, params | {"blocks": blocks}, tokens_BT, tokens_BT, dropout_key=jax.random.key(0))[0]

    assert (dropped(0) != dropped(1)).any()
    assert (dropped(0) == dropped(0)).all()


def test_clipping_sees_the_accumulated_gradient_once():
    cfg = tiny.gpt2()
    batch_of = lambda _: tiny.batch(cfg, 8, ragged=True)
    runs = [
        train(
            experiment(cfg, microbatches=k, optimizer=AdamW(clip=0.01, eps=1.0), schedule=Constant(peak=1.0)),
            Mesh(),
            1,
            2,
            batch_of,
        )
        for k in (1, 4)
    ]
    assert runs[0][1][0] > 0.1
    np.testing.assert_allclose(runs[0][1], runs[1][1], rtol=1e-5)
    assert worst(runs[0][2], runs[1][2]) < 1e-5


def test_loss_chunks_and_bfloat16_train():
    cfg = tiny.llama(dtype="bfloat16")
    exp = experiment(cfg, task=CausalLM(loss_chunk=8, z_loss=1e-4), schedule=Constant(peak=3e-3))
    losses, _, params = train(exp, Mesh(data=1, fsdp=2), 2, 20, lambda _: tiny.batch(cfg, 8))
    assert losses[-1] < losses[0] - 1
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_optimizer_state_on_the_host_gives_the_same_bits():
    """Between steps its arrays lie in pinned memory, on every device's own share."""
    cfg = tiny.llama(vocab=96, width=64)
    exp, mesh = experiment(cfg), Mesh(data=1, fsdp=2)
    batch_of = lambda i: tiny.batch(cfg, 8, seed=i)
    on_device = train(exp, mesh, 2, 2, batch_of)
    away = replace(exp, optimizer_memory="host")
    on_host = train(away, mesh, 2, 2, batch_of)
    assert on_host[:2] == on_device[:2]
    assert worst(on_device[2], on_host[2]) == 0
    state, _ = start(away, build_mesh(mesh, jax.devices()[:2]))
    kinds = {(x.ndim > 0, x.sharding.memory_kind) for x in jax.tree.leaves(state.opt_state)}
    assert kinds == {(True, "pinned_host"), (False, "device")}
    assert {x.sharding.memory_kind for x in jax.tree.leaves(state.params)} == {"device"}
