"""Laws of encoders: what a token sees, that kernels, meshes and ways to run the layers agree, what the heads are."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models import attention, transformer
from lmjax.models.attention import Auto, Blocks, Reference
from lmjax.models.config import ModelConfig, Span
from lmjax.sharding import Mesh, batch_sharding, build_mesh
from lmjax.train import state as train_state
from tests import tiny
from tests.models.test_attention import inputs

KERNELS = {"reference": Reference(), "blocks": Blocks(size=7), "auto": Auto()}


@pytest.fixture(scope="module")
def bert():
    cfg = tiny.bert()
    return cfg, tiny.params(cfg), tiny.batch(cfg, 3, apart=True)


def run(cfg, params, batch, **more):
    return tiny.hidden(cfg, params, batch.tokens_BT, batch.positions_BT, batch.segments_BT, **more)[0]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_token_sees_all_of_its_segment_and_nothing_else(kernel, bert):
    """By gradient: of every output by every embedding."""
    cfg, params, batch = bert
    cfg, T = replace(cfg, kernel=KERNELS[kernel]), cfg.context
    first = jax.tree.map(lambda x: x[:1], batch)
    table = jnp.asarray(np.random.default_rng(0).normal(size=(T, cfg.width)), jnp.float32)

    def outputs(rows_TD):
        # every place has a token of its own
        own = replace(cfg, vocab=T)
        hidden, _ = transformer.hidden(
            own, params | {"embedding": rows_TD}, np.arange(T)[None], first.positions_BT, first.segments_BT
        )
        return (hidden[0] * jnp.arange(1, cfg.width + 1)).sum(-1)

    depends_TT = np.abs(np.asarray(jax.jit(jax.jacrev(outputs))(table))).sum(-1) > 0
    segments_T = np.asarray(first.segments_BT[0])
    assert (depends_TT == (segments_T[:, None] == segments_T)).all()
    assert depends_TT[:9, 9].all()


@pytest.mark.parametrize("apart", [False, True])
def test_kernels_that_are_not_causal_have_one_value_and_one_gradient(apart):
    q, k, v, segments = inputs()
    segments = segments if apart else None

    def loss(q, k, v, kernel):
        return jnp.sin(attention.attend(q, k, v, segments, kernel, causal=False)).sum()

    both = [
        jax.jit(jax.value_and_grad(loss, (0, 1, 2)), static_argnums=3)(q, k, v, kernel)
        for kernel in (Reference(), Blocks(size=6))
    ]
    causal = jax.jit(lambda q, k, v: jnp.sin(attention.attend(q, k, v, segments, Reference())).sum())(q, k, v)
    assert abs(both[0][0] - causal) > 0.1
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "mesh", [Mesh(data=2, fsdp=2, tensor=2), Mesh(data=1, sequence=4, tensor=2)], ids=["mixed", "sequence"]
)
def test_eight_devices_equal_one(mesh, bert):
    cfg, params, _ = bert
    batch = tiny.batch(cfg, 4, apart=True)
    alone = run(cfg, params, batch)
    many = build_mesh(mesh)
    with jax.set_mesh(many):
        placed = jax.device_put(params, train_state.param_shardings(cfg, many))
        rows = jax.tree.map(lambda x: jax.device_put(x, batch_sharding(many)), batch)
        together = jax.jit(lambda params, batch: run(cfg, params, batch))(placed, rows)
    np.testing.assert_allclose(together, alone, atol=2e-5)


def test_layers_apart_scanned_and_recomputed_agree(bert):
    cfg, params, batch = bert
    whole = run(cfg, params, batch)
    np.testing.assert_allclose(run(cfg, transformer.apart(params), batch), whole, atol=1e-5)
    gradient = lambda cfg: jax.jit(jax.grad(lambda p: jnp.sin(run(cfg, p, batch)).sum()))(params)
    plain = gradient(cfg)
    for changes in ({"remat": "products"}, {"unroll": 2}):
        for a, b in zip(*map(jax.tree.leaves, (plain, gradient(replace(cfg, **changes)))), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_token_types(bert):
    cfg, params, batch = bert
    types_BT = np.zeros_like(batch.tokens_BT)
    assert (run(cfg, params, batch, types_BT=types_BT) == run(cfg, params, batch)).all()
    assert np.abs(run(cfg, params, batch, types_BT=1 - types_BT) - run(cfg, params, batch)).max() > 0.1


def test_heads_equal_float64_formulas(bert):
    cfg, params, batch = bert
    hidden = run(cfg, params, batch)
    h, p = np.asarray(hidden, np.float64), jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    dense = p["pooler"]["dense"]
    np.testing.assert_allclose(
        jax.jit(transformer.pooled, static_argnums=0)(cfg, params, hidden),
        np.tanh(h[:, 0] @ dense["kernel"] + dense["bias"]),
        atol=1e-5,
    )
    head = p["masked_head"]
    x = h @ head["dense"]["kernel"] + head["dense"]["bias"]
    x = x * 0.5 * (1 + np.vectorize(__import__("math").erf)(x / 2**0.5))
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + cfg.norm.epsilon) * head["norm"]["scale"] + head["norm"]["bias"]
    logits = x @ p["embedding"].T + head["bias"]
    ours = jax.jit(transformer.masked_logits, static_argnums=0)(cfg, params, hidden)
    np.testing.assert_allclose(ours, logits, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": (Span(window=3),)}, "causal is False, and a Span has a window"),
        ({"parallel": True}, "norm_first is False"),
        ({"token_types": -1}, "token_types is -1"),
        ({"logit_cap": 3.0}, "masked_head has no logit_cap"),
    ],
)
def test_what_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny.bert(**changes)


def test_no_experiment_predicts_the_next_token_of_an_encoder():
    with pytest.raises(ValueError, match="expected model.causal to be True"):
        tiny.experiment("unused", model=tiny.bert())


def test_counts_of_bert_equal_the_published():
    """google-bert/bert-base-uncased: 109,482,240 with the pooler, and 110,106,428 of BertForPreTraining less its
    second task's 1,538."""
    base = ModelConfig(
        layers=12, width=768, heads=12, context=512, vocab=30_522, causal=False, norm_first=False, embedding_norm=True,
        token_types=2, pooler=True,
    )  # fmt: skip
    count = lambda cfg: sum(x.size for x in jax.tree.leaves(transformer.abstract_params(cfg)))
    assert count(base) == 109_482_240
    assert count(replace(base, masked_head="gelu")) == 110_106_428 - 1_538
