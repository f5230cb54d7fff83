"""Two stacks against an independent float64 forward pass, and the laws that they keep."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax import trees
from lmjax.errors import UserError
from lmjax.models import attention, transformer, zoo
from lmjax.models.attention import Auto, Blocks, Reference
from lmjax.models.cache import empty_cache
from lmjax.models.config import Span
from lmjax.models.cross_attention import Source
from lmjax.models.feedforward import Dense, Experts
from lmjax.models.packed_params import pack_params
from lmjax.models.positions import Relative, buckets_of_distance
from lmjax.sharding import Mesh, batch_sharding, build_mesh
from lmjax.train import state as train_state
from tests import reference, tiny

CONFIGS = {
    "2017": tiny.translator(),
    "t5": tiny.t5(),
    "t5_tied": tiny.t5(tied=True, scaled_output=True, feedforward=Dense(width=40, activation="relu", bias=False)),
    "biases": tiny.translator(bias=True, norm_first=True, tied=False, kv_heads=2, qk_norm=True),
}
# two pairs in a row of 18 and 14 places, and padding
SOURCE, TARGET = (7, 9), (4, 8)


def pairs(seed: int = 0):
    """Two pairs: (source ids, target ids) each."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 97, s, np.int32), rng.integers(0, 97, t, np.int32)) for s, t in zip(SOURCE, TARGET)]


def packed(parts, width: int):
    """One row: (tokens, positions, segments), padding last."""
    rest = width - sum(map(len, parts))
    tokens = np.concatenate([*parts, np.full(rest, 5, np.int32)])
    positions = np.concatenate([np.arange(len(part)) for part in parts] + [np.arange(rest)])
    segments = np.concatenate([np.full(len(part), i + 1) for i, part in enumerate(parts)] + [np.zeros(rest, int)])
    return tuple(x[None].astype(np.int32) for x in (tokens, positions, segments))


def alone(ids):
    return ids[None], np.arange(len(ids), dtype=np.int32)[None]


@partial(jax.jit, static_argnames="cfg")
def logits(cfg, params, source, target, key=None):
    """Each a row as `packed` or `alone` gives it."""
    encoded = transformer.encode(cfg, params, *source, dropout_key=key)
    hidden, _ = transformer.hidden(cfg, params, *target, source=encoded, dropout_key=key)
    return transformer.logits(transformer.unembedding(cfg, params), hidden, cfg.logit_cap)


def near(found, expected, share: float = 2e-5):
    np.testing.assert_allclose(found, expected, atol=share * np.abs(expected).max())


@pytest.mark.parametrize("name", ["2017", "t5", "t5_tied"])
def test_equals_float64_reference(name):
    cfg, (source, target) = CONFIGS[name], pairs()[1]
    params = tiny.params(cfg)
    expected = reference.two_stacks(cfg, params, source, target)
    assert np.abs(expected).max() > 0.5
    near(logits(cfg, params, alone(source), alone(target))[0], expected)


@pytest.mark.parametrize("name", ["2017", "t5"])
def test_packed_equals_unpacked(name):
    cfg, both = CONFIGS[name], pairs()
    params = tiny.params(cfg)
    row = logits(cfg, params, packed([s for s, _ in both], 18), packed([t for _, t in both], 14))[0]
    assert np.isfinite(row).all()
    start = 0
    for source, target in both:
        near(row[start : start + len(target)], logits(cfg, params, alone(source), alone(target))[0])
        start += len(target)


@pytest.mark.parametrize(("name", "kernel"), [("2017", Blocks(size=5)), ("t5", Reference()), ("t5", Blocks(size=5))])
def test_what_a_target_token_sees_by_gradient(name, kernel):
    """All of its own source and nothing of another, no later target token, no padding."""
    cfg = replace(CONFIGS[name], kernel=kernel, tied=False, vocab=32)
    params = tiny.params(cfg)
    both = pairs()
    source, target = packed([s for s, _ in both], 18), packed([t for _, t in both], 14)
    # every place a token of its own
    places = np.arange(18, dtype=np.int32)[None], np.arange(18, 32, dtype=np.int32)[None]

    def sums_T(embedding):
        return logits(cfg, params | {"embedding": embedding}, (places[0], *source[1:]), (places[1], *target[1:]))[
            0
        ].sum(-1)

    influence_TE = np.abs(jax.jit(jax.jacrev(sums_T))(params["embedding"])).sum(-1) > 0
    own_T, own_S = target[2][0], source[2][0]
    here = own_T != 0
    expected_TS = own_T[:, None] == own_S
    expected_TT = (own_T[:, None] == own_T) & np.tri(14, dtype=bool)
    assert (influence_TE[here, :18] == expected_TS[here]).all()
    assert (influence_TE[here, 18:] == expected_TT[here]).all()


@pytest.mark.parametrize(("name", "stacked"), [("2017", True), ("t5", True), ("t5", False), ("biases", False)])
def test_cached_equals_uncached(name, stacked):
    """The source is read once; prompts by chunks, then token by token; two rows of one source share its keys."""
    cfg = CONFIGS[name]
    params = tiny.params(cfg)
    params = params if stacked else transformer.apart(params)
    rng = np.random.default_rng(1)
    source_BS, lengths_B = rng.integers(0, 97, (2, 11), np.int32), np.array([11, 6])
    target_RT = rng.integers(0, 97, (4, 12), np.int32)
    segments_BS = (np.arange(11) < lengths_B[:, None]).astype(np.int32)
    positions_BS, positions_RT = (np.broadcast_to(np.arange(n), (r, n)) for r, n in ((2, 11), (4, 12)))
    source = jax.jit(lambda params: transformer.encode(cfg, params, source_BS, positions_BS, segments_BS))(params)
    twice = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), source)
    whole, _ = jax.jit(lambda params: transformer.hidden(cfg, params, target_RT, positions_RT, source=twice))(params)
    with_source = jax.jit(
        lambda params, source: transformer.with_source(cfg, params, empty_cache(cfg, 4, 16, stacked=stacked), source)
    )
    cache = with_source(params, source)
    found = []
    run = jax.jit(
        lambda params, tokens, positions, cache: transformer.hidden(cfg, params, tokens, positions, cache=cache)
    )
    for start, stop in ((0, 8), *((i, i + 1) for i in range(8, 12))):
        some, cache = run(params, target_RT[:, start:stop], positions_RT[:, start:stop], cache)
        found.append(some)
    near(jnp.concatenate(found, axis=1), whole, 1e-5)


def test_trains_with_dropout_and_the_ways_to_run_agree():
    cfg = tiny.t5(dropout=0.2)
    params, both = tiny.params(cfg), pairs()
    source, target = packed([s for s, _ in both], 18), packed([t for _, t in both], 14)

    def loss(params, cfg, key=jax.random.key(3)):
        log_p = jax.nn.log_softmax(logits(cfg, params, source, target, key))
        return -jnp.where(target[2] != 0, log_p[:, :, 0], 0).sum()

    def gradient(cfg):
        return jax.jit(jax.grad(loss), static_argnums=1)(params, cfg)

    plain = gradient(cfg)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(plain))
    largest = max(np.abs(x).max() for x in jax.tree.leaves(plain))
    for a, b in zip(*map(jax.tree.leaves, (plain, gradient(replace(cfg, unroll=2, remat="attention")))), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * largest
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(partial(loss, cfg=cfg, key=None))(params)
        updates, state = optimizer.update(grads, state)
        return value, optax.apply_updates(params, updates), state

    state, losses = jax.jit(optimizer.init)(params), []
    for _ in range(8):  # without dropout, which would hide it
        value, params, state = step(params, state)
        losses.append(float(value))
    assert losses[-1] < losses[0] / 2


def test_dropout_of_the_two_stacks_differs():
    """One key for both: where the layers are the same, the masks must not be."""
    cfg = tiny.translator(dropout=0.5)
    key, ids = jax.random.key(0), np.arange(16, dtype=np.int32)
    params = tiny.params(cfg)
    source = tiny.encode(cfg, params, *alone(ids), dropout_key=key)
    own = {"embedding": params["embedding"], **params["encoder"]}
    same, _ = tiny.hidden(cfg.encoder, own, *alone(ids), dropout_key=key)
    assert np.abs(source.hidden_BSD - same).max() > 0.1


@pytest.mark.parametrize(
    ("name", "mesh"), [("2017", Mesh(data=2, fsdp=2, tensor=2)), ("t5", Mesh(data=1, sequence=4, tensor=2))]
)
def test_eight_devices_equal_one(name, mesh):
    cfg = CONFIGS[name]
    params = tiny.params(cfg)
    rows = [tiny.batch(cfg, 4, apart=True, seed=seed) for seed in range(2)]
    rows = tuple((x.tokens_BT, x.positions_BT, x.segments_BT) for x in rows)

    def loss(params, rows):
        return jnp.sin(logits(cfg, params, *rows)).mean()

    expected = jax.jit(jax.value_and_grad(loss))(params, rows)
    many = build_mesh(mesh)
    with jax.set_mesh(many):
        placed = jax.device_put(params, train_state.param_shardings(cfg, many))
        spread_rows = jax.tree.map(lambda x: jax.device_put(x, batch_sharding(many)), rows)
        found = jax.jit(jax.value_and_grad(loss))(placed, spread_rows)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected[1]))
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert np.abs(a - b).max() <= 2e-5 * max(1, largest)


def test_packed_matrices_are_near():
    cfg = tiny.translator(bias=True)
    params = transformer.apart(tiny.params(cfg))
    source, target = map(alone, pairs()[1])
    whole = logits(cfg, params, source, target)
    half = logits(cfg, pack_params(cfg, params, "bfloat16"), source, target)
    difference = np.abs(whole - half).max() / np.abs(whole).max()
    assert 1e-4 < difference < 0.05


def test_source_kernels_have_one_value_and_one_gradient():
    """Of other lengths on both sides, with groups, and a query that sees nothing."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(key, (2, n, h, 8)) for key, n, h in zip(keys, (13, 9, 9), (4, 2, 2)))
    mask = jax.random.bernoulli(keys[3], 0.5, (2, 13, 9)).at[1, 4].set(False)

    def loss(q, k, v, kernel):
        return jnp.sin(attention.attend_source(q, k, v, mask, kernel, scale=0.7)).sum()

    of = jax.jit(jax.value_and_grad(loss, (0, 1, 2)), static_argnums=3)
    a, b = (of(q, k, v, kernel) for kernel in (Reference(), Blocks(size=5)))
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)
    scores = np.einsum("BTKGH,BSKH->BKGTS", q.reshape(2, 13, 2, 2, 8), k) * 0.7
    weights = np.array(jax.nn.softmax(np.where(mask[:, None, None], scores, -1e30), axis=-1))
    weights[1, :, :, 4] = 0
    expected = np.einsum("BKGTS,BSKH->BTKGH", weights, v).reshape(2, 13, 4, 8)
    auto = jax.jit(partial(attention.attend_source, kernel=Auto(), scale=0.7))(q, k, v, mask)
    np.testing.assert_allclose(auto, expected, atol=2e-5)


@pytest.mark.parametrize("relative", [Relative(), Relative(buckets=8, distance=13), Relative(buckets=12, distance=40)])
@pytest.mark.parametrize("causal", [True, False])
def test_buckets(relative, causal):
    found = buckets_of_distance(relative, causal)
    assert list(found) == [reference.bucket(-far, relative, not causal) for far in range(relative.distance + 1)]
    assert found[-1] == (relative.buckets if causal else relative.buckets // 2) - 1


def test_kernels_without_a_bias_say_so():
    need = replace(attention.need_of(tiny.t5(), apart=False, length=128), platform="tpu", head_width=64)
    assert "positions are Relative" in attention.obstacle(attention.Splash(), need)
    assert attention.choose(Auto(), need)[0] == Blocks(size=128)
    assert isinstance(attention.choose(Auto(), replace(need, parts=2))[0], Reference)
    on_gpu = replace(need, platform="gpu", dtype="bfloat16")
    assert "positions are Relative" in attention.obstacle(attention.CudnnFlash(), on_gpu)


def test_counts_equal_the_published():
    """arXiv:1706.03762, table 3, without biases and norms; T5 as transformers counts the released checkpoints."""
    count = lambda cfg, but=(): sum(
        x.size for name, x in trees.named_leaves(transformer.abstract_params(cfg)) if not name.endswith(but)
    )
    assert count(zoo.transformer_2017("base"), ("bias", "scale")) == 62_984_192
    assert count(zoo.transformer_2017("big"), ("bias", "scale")) == 214_048_768
    sizes = {"small": 60_506_624, "base": 222_903_552, "large": 737_668_096, "3b": 2_851_598_336, "11b": 11_307_321_344}
    assert {size: count(zoo.t5(size)) for size in zoo.T5} == sizes
    sizes = {
        "small": 76_961_152, "base": 247_577_856, "large": 783_150_080, "xl": 2_849_757_184, "xxl": 11_135_332_352,
    }  # fmt: skip
    assert {size: count(zoo.t5_v1_1(size)) for size in zoo.T5_V1_1} == sizes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_layers": -1}, "encoder_layers is -1"),
        ({"causal": False}, "without causal=False"),
        ({"pattern": (Span(window=3),)}, "without a window"),
        ({"feedforward": Experts(), "norm_first": True}, "without Experts"),
        ({"masked_head": "gelu", "pooler": True}, "without masked_head, pooler"),
    ],
)
def test_what_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny.translator(**changes)


def test_a_source_without_segments_is_seen_whole():
    cfg, (source, target) = tiny.translator(), pairs()[0]
    params = tiny.params(cfg)
    encoded = tiny.encode(cfg, params, *alone(source))
    ones = np.ones((1, len(source)), np.int32)
    for other in (Source(encoded.hidden_BSD, ones), Source(encoded.hidden_BSD, None)):
        found, _ = tiny.hidden(cfg, params, *alone(target), np.ones((1, len(target)), np.int32), source=other)
        expected, _ = tiny.hidden(cfg, params, *alone(target), source=encoded)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_without_a_source_is_one_line():
    cfg = tiny.translator()
    params, ids = transformer.abstract_params(cfg), alone(pairs()[0][1])
    cache = empty_cache(cfg, 1, 8, stacked=True)
    for call in (transformer.trained, transformer.hidden, partial(transformer.hidden, cache=cache)):
        with pytest.raises(UserError, match="encoder_layers is 3, and there is no source"):
            call(cfg, params, *ids)
