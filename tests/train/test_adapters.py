"""Training of an adapter or of a part: what is frozen stays, gradients are the chain rule's, any mesh, any microbatches."""

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest

from lmjax import optim, trained
from lmjax.models import lora
from lmjax.models.lora import LoRA
from lmjax.optim import Adafactor, AdamW, Constant, Muon
from lmjax.sharding import Mesh, build_mesh, place_batch
from lmjax.train import state as train_state
from lmjax.train.step import compile_step, grads_and_loss
from lmjax.trees import named_leaves, nested
from tests import tiny
from tests.train.test_step import MESHES, worst

ADAPTER = LoRA(rank=4, weights=("blocks/*/kernel", "unembedding"), train=("*/scale",))
PARTS = {"freeze": {"freeze": ("embedding", "blocks/attention/*")}, "adapter": {"adapter": ADAPTER}}


def experiment(part, cfg=None, **changes):
    cfg = tiny.llama(vocab=96, width=64, context=16) if cfg is None else cfg
    base = tiny.experiment("unused", model=cfg, microbatches=1, init_from="base", schedule=Constant(peak=1e-2))
    return replace(base, **{"optimizer": AdamW(eps=1e-2)} | PARTS[part] | changes)


def start(exp, mesh):
    """(state, frozen, optimizer); B is not 0, so that A has a gradient."""
    optimizer = optim.transform(exp.optimizer, exp.schedule, exp.steps)

    def make(params):
        state, frozen = train_state.begun(exp, optimizer, params)
        draw = np.random.default_rng(7).normal
        stirred = {
            path: x + np.float32(0.05 * draw(size=x.shape)) if path.endswith(lora.B) else x
            for path, x in named_leaves(state.params)
        }
        return replace(state, params=nested(stirred)), frozen

    where = train_state.shardings(exp, optimizer, mesh)
    return *jax.jit(make, out_shardings=where)(tiny.drawn(exp.model)), optimizer


def train(exp, mesh_config, devices, steps=3):
    """(losses, trained before, trained after, frozen before, frozen after, the optimizer's state)."""
    mesh = build_mesh(mesh_config, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        state, frozen, optimizer = start(exp, mesh)
        step, losses = compile_step(exp, optimizer, mesh), []
        first, still = jax.device_get((state.params, frozen))
        for index in range(steps):
            state, metrics = step(state, frozen, place_batch(tiny.batch(exp.model, 8, seed=index, ragged=True), mesh))
            losses.append(float(metrics.loss))
    return losses, first, jax.device_get(state.params), still, jax.device_get(frozen), state.opt_state


@pytest.mark.parametrize(
    ("part", "optimizer"),
    [("freeze", Adafactor()), ("adapter", Muon(weight_decay=0.1))],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_all_that_is_trained_moves_and_nothing_else(part, optimizer):
    exp = experiment(part, optimizer=optimizer, schedule=Constant(peak=1e-3))
    _, first, last, still, frozen, opt_state = train(exp, Mesh(), 1)
    for (path, x), (_, y) in zip(named_leaves(first), named_leaves(last), strict=True):
        assert (x != y).any(), path
    for (path, x), (_, y) in zip(named_leaves(still), named_leaves(frozen), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=path)
    moments = [path for path, _ in named_leaves(opt_state)]
    assert not [path for path, _ in named_leaves(still) if any(moment.endswith(f"/{path}") for moment in moments)]


def gradients(exp, params, frozen, batch):
    run = jax.jit(lambda params: grads_and_loss(exp, params, frozen, batch, jax.random.key(0)))
    grads, loss = run(params)
    return jax.tree.map(lambda g: np.asarray(g / loss.weight), grads), loss


@pytest.mark.parametrize("part", PARTS)
def test_gradients_are_those_of_the_whole_model(part):
    """Of a trained parameter the same; of A and B, (alpha / rank) times dW B^T and A^T dW."""
    exp = experiment(part, tiny.llama())
    state, frozen, _ = start(exp, build_mesh(Mesh(), jax.devices()[:1]))
    batch = tiny.batch(exp.model, 4)
    params = jax.jit(lambda params, frozen: trained.whole(exp, params, frozen))(state.params, frozen)
    full, _ = gradients(replace(exp, freeze=(), adapter=None), params, {}, batch)
    full, which = dict(named_leaves(full)), trained.parts(exp)
    ours, given = dict(named_leaves(gradients(exp, state.params, frozen, batch)[0])), dict(named_leaves(state.params))
    assert len(ours) == len(which.trained) + 2 * len(which.adapted)
    for path in which.trained:
        np.testing.assert_allclose(ours[path], full[path], rtol=1e-4, atol=1e-6, err_msg=path)
    for path, of in which.adapted.items():
        dw = full[path].transpose(of.leading + of.inputs + of.outputs)
        lead, inputs = len(of.leading), len(of.inputs)
        rows = int(np.prod(dw.shape[lead : lead + inputs]))
        dw = dw.reshape(-1, rows, int(np.prod(dw.shape[lead + inputs :])))
        a = np.asarray(given[f"{path}/{lora.A}"]).reshape(len(dw), rows, 4)
        b = np.asarray(given[f"{path}/{lora.B}"]).reshape(len(dw), 4, -1)
        expected = {lora.A: 4.0 * dw @ b.transpose(0, 2, 1), lora.B: 4.0 * a.transpose(0, 2, 1) @ dw}
        for name, wanted in expected.items():
            got = ours[f"{path}/{name}"].reshape(wanted.shape)
            assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max(), (path, name)


def test_microbatches_equal_one():
    exp = experiment("adapter", tiny.gpt2(), adapter=LoRA(rank=4))
    state, frozen, _ = start(exp, build_mesh(Mesh(), jax.devices()[:1]))
    batch = tiny.batch(exp.model, 8, ragged=True)
    whole, loss = gradients(exp, state.params, frozen, batch)
    parts, summed = gradients(replace(exp, microbatches=4), state.params, frozen, batch)
    np.testing.assert_allclose(summed.mean(), loss.mean(), rtol=1e-6)
    assert worst(whole, parts) < 1e-5


@functools.cache
def on_one_device(part):
    """With dropout on."""
    cfg = replace(tiny.llama(vocab=96, width=64, context=16), dropout=0.1)
    few = {"adapter": replace(ADAPTER, weights=("blocks/attention/[qo]*/kernel", "unembedding"))}
    exp = experiment(part, cfg, **(few if part == "adapter" else {}))
    return exp, train(exp, Mesh(), 1)


@pytest.mark.parametrize(("part", "name"), [("freeze", "mixed"), ("adapter", "mixed"), ("adapter", "sequence")])
def test_eight_devices_equal_one(part, name):
    exp, (losses, first, last, *_) = on_one_device(part)
    other_losses, other_first, other, *_ = train(exp, MESHES[name], 8)
    assert worst(first, other_first) == 0
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    assert worst(last, other) < 1e-5


def test_factors_are_split_as_their_weight():
    exp = experiment("adapter")
    state, frozen, _ = start(exp, build_mesh(MESHES["mixed"]))
    leaves = dict(named_leaves((state.params, frozen)))
    q = "blocks/attention/q/kernel"
    for path, ways in [(f"1/{q}", 4), (f"0/{q}/lora_a", 2), (f"0/{q}/lora_b", 2)]:
        assert leaves[path].addressable_shards[0].data.size * ways == leaves[path].size, path


def test_the_plain_step_keeps_no_frozen_copy():
    """Without freezing nothing is beside the state."""
    exp = replace(experiment("freeze"), freeze=())
    params = tiny.params(exp.model)
    ours, frozen = trained.split(exp, params)
    assert frozen == {}
    assert jax.tree.structure(ours) == jax.tree.structure(params)


def test_what_is_computed_again_and_how_layers_lie_changes_nothing():
    """A B is added inside the loop over the layers, and inside of what remat computes again."""
    batch, seen = tiny.batch(tiny.mixtral(), 4), []
    for changes in ({}, {"remat": "products"}, {"remat": "everything", "unroll": 2}):
        exp = experiment("adapter", tiny.mixtral(**changes), adapter=LoRA(rank=2, weights=("blocks/feedforward/*",)))
        state, frozen, _ = start(exp, build_mesh(Mesh(), jax.devices()[:1]))
        seen.append(gradients(exp, state.params, frozen, batch)[0])
    assert worst(seen[0], seen[1]) < 1e-5
    assert worst(seen[0], seen[2]) < 1e-5
