"""The Transformer against an independent float64 forward pass, and the laws that it keeps."""

from dataclasses import replace
from functools import partial
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import NameInUseError, ScopeParamShapeError

from lmjax import trees
from lmjax.models import attention, transformer, zoo
from lmjax.models.blocks import BLOCK_INPUT
from lmjax.models.config import Remat
from lmjax.models.feedforward import Dense
from lmjax.models.positions import Sinusoidal
from lmjax.sharding import partition, weight
from tests import reference, tiny

CONFIGS = {
    "gpt2": tiny.gpt2(),
    "nanogpt": tiny.gpt2(bias=False, feedforward=Dense(activation="gelu", bias=False)),
    "relu_squared": tiny.gpt2(feedforward=Dense(activation="relu_squared", width=40)),
    "llama": tiny.llama(),
    "multi_query": tiny.llama(kv_heads=1, head_dim=12, qk_norm=False),
}
# these have their references in tests/parity, by transformers, and in the golden files made there
OTHERS = {"gemma": tiny.gemma(), "neox": tiny.neox(), "mixtral": tiny.mixtral()}


@partial(jax.jit, static_argnames="cfg")
def logits(cfg, params, batch):
    hidden, _ = transformer.hidden(cfg, params, batch.tokens_BT, batch.positions_BT, batch.segments_BT)
    return transformer.logits(transformer.unembedding(cfg, params), hidden, cfg.logit_cap)


# what keeps documents apart is the same in all of them, and so is its absence
@pytest.mark.parametrize(("name", "apart"), [*((name, True) for name in CONFIGS), ("gpt2", False), ("llama", False)])
def test_equals_float64_reference(name, apart):
    cfg = CONFIGS[name]
    params = tiny.params(cfg)
    batch = tiny.batch(cfg, 2, apart=apart)
    ours = np.asarray(logits(cfg, params, batch))
    for row in range(2):
        segments = batch.segments_BT[row] if apart else np.ones(cfg.context)
        theirs = reference.logits(cfg, params, batch.tokens_BT[row], batch.positions_BT[row], segments)
        assert np.abs(theirs).max() > 1  # an output near zero would hide anything
        np.testing.assert_allclose(ours[row], theirs, atol=2e-5 * np.abs(theirs).max())


def test_counts_equal_the_published():
    counts = {
        ("gpt2", "small"): 124_439_808, ("gpt2", "medium"): 354_823_168, ("gpt2", "large"): 774_030_080,
        ("gpt2", "xl"): 1_557_611_200, ("gpt3", "small"): 125_226_240, ("gpt3", "medium"): 355_871_744,
        ("gpt3", "large"): 760_300_032, ("gpt3", "xl"): 1_315_723_264, ("gpt3", "2.7b"): 2_651_553_280,
        ("gpt3", "6.7b"): 6_658_404_352, ("gpt3", "13b"): 12_853_386_240, ("gpt3", "175b"): 174_604_259_328,
        ("llama", "2-7b"): 6_738_415_616, ("llama", "2-13b"): 13_015_864_320, ("llama", "2-70b"): 68_976_648_192,
        ("llama", "3-8b"): 8_030_261_248, ("llama", "3-70b"): 70_553_706_496,
    }  # fmt: skip
    for (family, size), count in counts.items():
        assert trees.count(transformer.abstract_params(getattr(zoo, family)(size))) == count, (family, size)
    small = zoo.nanogpt(layers=4, heads=4, width=128, context=64, vocab=65)
    assert trees.count(transformer.abstract_params(small)) == 804_096
    assert trees.count(transformer.abstract_params(zoo.nanogpt(vocab=50_257))) == 124_337_664


def test_gpt3_alternates_dense_and_banded_layers():
    cfg = zoo.gpt3("small", band=256)
    assert [cfg.pattern[layer % len(cfg.pattern)].window for layer in range(4)] == [None, 256, None, 256]
    assert zoo.gpt3("small").pattern[0].window is None and len(zoo.gpt3("small").pattern) == 1


# no kernel knows of positions: each of both is there once
@pytest.mark.parametrize(
    ("name", "kernel"),
    [("gpt2", attention.Reference()), ("llama", attention.Blocks(size=5)), ("sinusoidal", attention.Reference())],
    ids=["gpt2", "llama", "sinusoidal"],
)
def test_causal_by_gradient(name, kernel):
    cfg = {"gpt2": tiny.gpt2(), "llama": tiny.llama(), "sinusoidal": tiny.gpt2(positions=Sinusoidal())}[name]
    cfg = replace(cfg, context=12, kernel=kernel, tied=False)
    params = tiny.params(cfg)
    # every token its own id, so that a row of the embedding's gradient is one place
    tokens_BT = jnp.arange(12)[None]

    def sums_T(embedding):
        hidden, _ = transformer.hidden(cfg, params | {"embedding": embedding}, tokens_BT, tokens_BT)
        return transformer.logits(params["unembedding"], hidden, None)[0].sum(-1)

    influence_TS = np.abs(jax.jit(jax.jacobian(sums_T))(params["embedding"])[:, :12]).sum(-1)
    assert (influence_TS[np.triu_indices(12, 1)] == 0).all()
    assert (influence_TS[np.tril_indices(12)] > 0).all()


def test_changing_a_token_leaves_earlier_logits_bitwise():
    cfg = tiny.llama()
    params = tiny.params(cfg)
    batch = tiny.batch(cfg, 1)
    changed = batch.tokens_BT.copy()
    changed[0, 20] = (changed[0, 20] + 1) % cfg.vocab
    before, after = logits(cfg, params, batch), logits(cfg, params, replace(batch, tokens_BT=changed))
    assert (before[0, :20] == after[0, :20]).all()
    assert (before[0, 20:] != after[0, 20:]).any(axis=-1).all()


@pytest.mark.parametrize("name", ["gpt2", "llama", *OTHERS])
def test_layers_apart_equal_layers_stacked_and_taps_hold_what_was_computed(name):
    cfg = (CONFIGS | OTHERS)[name]
    params = tiny.params(cfg)
    batch = tiny.batch(cfg, 2)
    where = (batch.tokens_BT, batch.positions_BT)
    (stacked, _), (apart, _) = tiny.hidden(cfg, params, *where), tiny.hidden(cfg, transformer.apart(params), *where)
    np.testing.assert_allclose(apart, stacked, atol=1e-5 * np.abs(stacked).max())
    last, sites = jax.jit(transformer.captured, static_argnums=0)(cfg, params, *where)
    np.testing.assert_array_equal(last, sites["ln_final.hook_normalized"])
    for i in range(cfg.layers):
        here = {site.removeprefix(f"blocks.{i}."): x for site, x in sites.items()}
        expected = here["hook_resid_pre"] + here["hook_attn_out"] + here["hook_mlp_out"]
        np.testing.assert_allclose(here["hook_resid_post"], expected, atol=1e-5 * np.abs(expected).max())


def test_unused_taps_add_nothing():
    """Neither to the program of training, nor to that of a model whose layers lie apart."""
    cfg = tiny.llama()
    params, batch = tiny.params(cfg), tiny.batch(cfg, 2)

    # makers of their own: JAX keeps what it traced by function
    def program(params):
        return str(
            jax.jit(lambda p: transformer.hidden(cfg, p, batch.tokens_BT, batch.positions_BT)[0])
            .lower(params)
            .as_text()
        )

    before = [program(params), program(transformer.apart(params))]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("blocks", "feedforward", "moe", "norms", "transformer"):
            patch.setattr(f"lmjax.models.{name}.tap", lambda module, name, x: x)
        assert [program(params), program(transformer.apart(params))] == before


@pytest.mark.parametrize("window", [1, 5, 24])
def test_a_window_is_a_mask_in_every_kernel(window):
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 24, 2, 8)) for i in range(3))
    far = np.arange(24)[:, None] - np.arange(24)
    bias = jnp.where((far >= 0) & (far < window), 0.0, -jnp.inf)

    @jax.jit
    def formula(q, k, v):
        scores = 5 * jnp.tanh(jnp.einsum("BTNH,BSNH->BNTS", q, k) * 0.7 / 5)
        return jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(scores + bias, axis=-1), v)

    expected = formula(q, k, v)
    attend = jax.jit(partial(attention.attend, scale=0.7, cap=5.0, window=window), static_argnums=4)
    for kernel in (attention.Reference(), attention.Blocks(size=7)):
        ours = attend(q, k, v, None, kernel)
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_scan_equals_unrolled():
    """One layout of the parameters, the same losses and gradients."""
    cfg, other = tiny.gpt2(layers=4), tiny.gpt2(layers=4, unroll=2)
    params = tiny.params(cfg)
    assert transformer.abstract_params(cfg) == transformer.abstract_params(other)
    batch = tiny.batch(cfg, 2)

    def loss(params, cfg):
        return (logits(cfg, params, batch) ** 2).mean()

    (a, ga), (b, gb) = (jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, c) for c in (cfg, other))
    np.testing.assert_allclose(a, b, rtol=1e-6)
    # a key's bias has no gradient but rounding, so the largest of all leaves is the measure
    largest = max(np.abs(x).max() for x in jax.tree.leaves(ga))
    for x, y in zip(jax.tree.leaves(ga), jax.tree.leaves(gb), strict=True):
        assert np.abs(x - y).max() <= 1e-5 * largest


def test_remat_keeps_what_it_says():
    """The same gradients from less memory, in the order that ModelConfig promises, and inputs that lie on the host."""
    temporary, gradients = {}, {}
    for remat in get_args(Remat):
        cfg = tiny.gpt2(layers=6, width=128, remat=remat)
        params, batch = tiny.params(cfg), tiny.batch(cfg, 16)
        gradient = jax.jit(jax.grad(lambda p, cfg=cfg, batch=batch: (logits(cfg, p, batch) ** 2).mean()))
        traced = gradient.trace(params)
        compiled = traced.lower().compile()
        temporary[remat], gradients[remat] = compiled.memory_analysis().temp_size_in_bytes, compiled(params)
        assert ("<host>" in str(traced.jaxpr)) == (remat == "offload")
        assert (BLOCK_INPUT in str(traced.jaxpr)) == (remat != "nothing")
    order = [temporary[name] for name in ("nothing", "products", "attention", "everything")]
    assert order == sorted(order, reverse=True) and len(set(order)) == 4
    largest = max(np.abs(x).max() for x in jax.tree.leaves(gradients["nothing"]))
    for remat in gradients:
        pairs = zip(jax.tree.leaves(gradients["nothing"]), jax.tree.leaves(gradients[remat]))
        assert max(np.abs(a - b).max() for a, b in pairs) <= 1e-6 * largest, remat


def test_bfloat16_computes_over_float32_parameters():
    cfg = tiny.gpt2()
    params = tiny.params(cfg)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    batch = tiny.batch(cfg, 2)
    exact, rounded = logits(cfg, params, batch), logits(replace(cfg, dtype="bfloat16"), params, batch)
    assert rounded.dtype == jnp.float32
    error = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.05


def test_a_weight_has_one_name_and_one_shape():
    class Twice(nn.Module):
        names: tuple[str, str]

        @nn.compact
        def __call__(self, size):
            return [weight(self, name, nn.initializers.ones, (None,), (size,)) for name in self.names]

    with pytest.raises(NameInUseError):
        Twice(("a", "a")).init(jax.random.key(0), 3)
    model = Twice(("a", "b"))
    params = nn.unbox(model.init(jax.random.key(0), 3))
    assert [x.shape for x in model.apply(params, 3)] == [(3,), (3,)]
    with pytest.raises(ScopeParamShapeError, match='"a"'):
        model.apply(params, 4)


def test_every_weight_names_its_axes():
    for cfg in (tiny.gpt2(), tiny.llama()):
        names, shapes = transformer.param_names(cfg), transformer.abstract_params(cfg)
        leaves = jax.tree.leaves(names, is_leaf=lambda x: isinstance(x, tuple))
        for axes, leaf in zip(leaves, jax.tree.leaves(shapes), strict=True):
            assert len(axes) == leaf.ndim
            partition(axes, leaf.shape, {"fsdp": 1, "tensor": 1})
    with pytest.raises(ValueError, match=r"'lenght' is not in sharding.RULES"):
        partition(("batch", "lenght"), (2, 2), {"data": 1})


def test_initialisation_is_scaled_by_depth():
    cfg = tiny.gpt2(layers=8, width=64, init_std=0.02)
    blocks = transformer.init_params(cfg, jax.random.key(0))["blocks"]
    assert np.std(blocks["attention"]["q"]["kernel"]) == pytest.approx(0.02, rel=0.03)
    assert np.std(blocks["feedforward"]["down"]["kernel"]) == pytest.approx(0.02 / 4, rel=0.03)
    assert np.std(blocks["attention"]["out"]["kernel"]) == pytest.approx(0.02 / 4, rel=0.03)


def test_keys_that_begin_equal_to_queries_differ_in_nothing_else():
    cfg, key = tiny.gpt2(), jax.random.key(3)
    plain, equal = transformer.init_params(cfg, key), transformer.init_params(replace(cfg, equal_keys=True), key)
    weights = equal["blocks"]["attention"]
    np.testing.assert_array_equal(weights["k"]["kernel"], weights["q"]["kernel"])
    assert np.abs(plain["blocks"]["attention"]["k"]["kernel"] - weights["k"]["kernel"]).max() > cfg.init_std
    weights["k"]["kernel"] = plain["blocks"]["attention"]["k"]["kernel"]
    jax.tree.map(np.testing.assert_array_equal, equal, plain)
    with pytest.raises(ValueError, match=r"equal_keys needs as many kv_heads as heads, 4; kv_heads is 2"):
        tiny.llama(equal_keys=True)
