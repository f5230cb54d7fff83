"""A B beside products of plain matrices, for every weight of every kind of model; and how A and B begin."""

import math

import jax
import numpy as np
import pytest

from lmjax.models import lora
from lmjax.models.transformer import abstract_params
from lmjax.trained import axes
from lmjax.trees import named_leaves
from tests import tiny

CONFIGS = {"gpt2": tiny.gpt2(), "gemma": tiny.gemma(), "mixtral": tiny.mixtral(), "bert": tiny.bert()}
# by the end of its path: how many axes stack matrices, and how many of the others are inputs
MATRICES = {
    "q/kernel": (1, 1), "k/kernel": (1, 1), "v/kernel": (1, 1), "out/kernel": (1, 2), "up/kernel": (1, 1),
    "gate/kernel": (1, 1), "down/kernel": (1, 1), "feedforward/up": (2, 1), "feedforward/gate": (2, 1),
    "feedforward/down": (2, 1), "router": (1, 1), "dense/kernel": (0, 1), "embedding": (0, 1), "positions": (0, 1),
    "token_types": (0, 1),
}  # fmt: skip


def draw(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_matrix_is_adapted_as_a_matrix(name):
    cfg, seen = CONFIGS[name], 0
    names = axes(cfg)
    for path, leaf in named_leaves(abstract_params(cfg)):
        of = lora.sides(path, names[path])
        if path.endswith(("/bias", "/scale")):
            assert of is None, path
            continue
        weight = draw(0, leaf.shape)
        if path == "unembedding":
            # read from D to V
            lead, inputs, weight = 0, 1, weight.T
        else:
            lead, inputs = next(sizes for end, sizes in MATRICES.items() if path.endswith(end))
        stack, rows = math.prod(weight.shape[:lead]), math.prod(weight.shape[lead : lead + inputs])
        a, b = draw(1, of.of_a(leaf.shape, 3)), draw(2, of.of_b(leaf.shape, 3))
        product = np.einsum("sir,sro->sio", a.reshape(stack, rows, 3), b.reshape(stack, 3, -1))
        expected = weight + 0.7 * product.reshape(weight.shape)
        ours = jax.jit(lora.adapted, static_argnums=(0, 4))(of, draw(0, leaf.shape), a, b, 0.7)
        np.testing.assert_allclose(ours.T if path == "unembedding" else ours, expected, rtol=1e-5, atol=1e-5)
        seen += 1
    assert seen >= 7


@pytest.mark.parametrize(("path", "fan_in"), [("blocks/attention/q/kernel", 48), ("blocks/attention/out/kernel", 40)])
def test_a_begins_as_peft_draws_it_and_b_at_zero(path, fan_in):
    """torch's kaiming_uniform_ with a = sqrt(5): uniform within 1 / sqrt(fan_in)."""
    cfg = tiny.gpt2(width=48, heads=4, head_dim=10)
    shape = dict(named_leaves(abstract_params(cfg)))[path].shape
    of = lora.sides(path, axes(cfg)[path])
    made = lora.fresh(path, of, shape, 64, jax.random.key(0))
    a, b = np.asarray(made[lora.A]), np.asarray(made[lora.B])
    assert (b == 0).all()
    assert 0.99 / math.sqrt(fan_in) < np.abs(a).max() <= 1 / math.sqrt(fan_in)
    assert a.std() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.03)
    assert (a[0] != a[1]).any()
    other = lora.fresh(path.replace("attention", "other"), of, shape, 64, jax.random.key(0))
    assert (np.asarray(other[lora.A]) != a).any()


def test_a_table_begins_with_rows_of_zero():
    made = lora.fresh("embedding", lora.sides("embedding", ("vocab", "embed")), (97, 32), 4, jax.random.key(0))
    assert (np.asarray(made[lora.A]) == 0).all()
    assert np.asarray(made[lora.B]).std() == pytest.approx(1, rel=0.2)
