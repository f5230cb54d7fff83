"""A mixture of experts trains the same on one device and on eight, and no device ever holds all experts."""

import functools
from dataclasses import replace

import numpy as np
import pytest

from lmjax.models.feedforward import Experts
from lmjax.optim import AdamW
from lmjax.plan import planning
from lmjax.sharding import Mesh, build_mesh
from tests import tiny
from tests.train.test_step import experiment, train, worst

MESHES = {
    "experts": Mesh(data=2, expert=4), "mixed": Mesh(data=1, fsdp=2, tensor=2, expert=2),
    "sequence": Mesh(data=1, fsdp=2, sequence=2, expert=2),
}  # fmt: skip


def mixture(capacity):
    ff = Experts(count=8, chosen=2, width=24, balance=0.1, router_z_loss=0.01, capacity=capacity)
    cfg = tiny.mixtral(vocab=96, context=16, feedforward=ff)
    # the large eps makes steps smooth: AdamW's first ones are signs, which amplify rounding near 0
    return experiment(cfg, apart=True, batch_size=16, microbatches=2, optimizer=AdamW(eps=1e-2))


def batch_of(exp, index):
    """Documents, padding at the ends of rows, and targets that do not count."""
    batch = tiny.batch(exp.model, 16, seed=index, apart=True, ragged=True)
    segments_BT = batch.segments_BT * (np.arange(16) < np.arange(9, 25)[:, None])
    return replace(batch, segments_BT=segments_BT, weights_BT=batch.weights_BT * (segments_BT > 0))


@functools.cache
def on_one_device(capacity):
    exp = mixture(capacity)
    return exp, train(exp, Mesh(), 1, 3, lambda i: batch_of(exp, i))


@pytest.mark.parametrize(("name", "capacity"), [("mixed", None), ("sequence", None), ("mixed", 0.7), ("sequence", 0.7)])
def test_eight_devices_equal_one(name, capacity):
    exp, (losses, norms, params) = on_one_device(capacity)
    other_losses, other_norms, other = train(exp, MESHES[name], 8, 3, lambda i: batch_of(exp, i))
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    np.testing.assert_allclose(other_norms, norms, rtol=1e-5)
    assert worst(params, other) < 1e-5


def test_no_device_holds_the_weights_of_all_experts():
    exp, mesh = mixture(None), build_mesh(MESHES["experts"])
    program = planning.compile_train_step(exp, mesh)[0].as_text()
    # the stack of both layers, and one layer's, in the forms of gate and down
    assert "f32[2,2,32,24]" in program
    for shape in ("[8,32,24]", "[8,24,32]", "[2,8,32,24]", "[2,8,24,32]"):
        assert shape not in program
