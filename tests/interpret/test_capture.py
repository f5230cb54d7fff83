"""What is captured is what the model computed, whatever way it computes; patches do what they say and nothing else."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.interpret import Patch, capture, patch, sites
from lmjax.interpret.capture import LOGITS, Read
from lmjax.models import blocks, cross_attention, feedforward, moe, norms, transformer
from lmjax.models.config import ModelConfig
from lmjax.sharding import Mesh, build_mesh, placement
from tests import tiny
from tests.interpret.small import model_of

# every way that a block is put together: norms before, behind and both; windows, parallel, experts
CONFIGS = {
    "gpt2": tiny.gpt2(), "llama": tiny.llama(), "gemma": tiny.gemma(), "neox": tiny.neox(), "mixtral": tiny.mixtral(),
    "bert": tiny.bert(), "translator": tiny.translator(layers=2), "t5": tiny.t5(layers=2),
}  # fmt: skip


def ids(cfg: ModelConfig, rows: int = 2, length: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, cfg.vocab, (rows, length)).astype(np.int32)


def sourced(cfg: ModelConfig, seed: int = 0) -> Read:
    """Two rows of ids, and a source of another length where there is an encoder."""
    return Read(ids(cfg, seed=seed), None, ids(cfg, length=9, seed=seed + 9) if cfg.encoder_layers else None)


@pytest.fixture(params=CONFIGS, scope="module")
def cfg(request):
    return CONFIGS[request.param]


@pytest.fixture(scope="module")
def found(cfg):
    """Everything, by layers apart."""
    return capture(model_of(cfg), sourced(cfg), "*")


def test_scanned_layers_have_the_same_sites_in_the_same_order(cfg, found):
    stacked = capture(model_of(replace(cfg, remat="everything"), apart=False), sourced(cfg), "*")
    assert list(stacked) == list(found) == [*sites(model_of(cfg)), LOGITS]
    for name, x in found.items():
        np.testing.assert_allclose(stacked[name], x, atol=2e-5 * max(1, np.abs(np.nan_to_num(x, neginf=0)).max()))


def test_capturing_changes_nothing(cfg, found):
    rows = sourced(cfg)
    plain = capture(model_of(cfg), rows, [LOGITS])[LOGITS]
    # attention weights are read from the formula as it stands, others from whatever kernel there is
    np.testing.assert_allclose(found[LOGITS], plain, atol=1e-5 * np.abs(plain).max())
    some = capture(model_of(cfg), rows, ["*.hook_resid_*", "*.hook_z", LOGITS])
    np.testing.assert_array_equal(some[LOGITS], plain)
    assert not [name for name in some if "pattern" in name]


def test_attention_weights_are_those_that_mix_the_values(cfg, found):
    for i in range(cfg.layers):
        pattern_BNTS, v_BSKH = found[f"blocks.{i}.attn.hook_pattern"], found[f"blocks.{i}.attn.hook_v"]
        np.testing.assert_allclose(pattern_BNTS.sum(-1), 1.0, atol=1e-6)
        if cfg.causal:
            assert not np.triu(np.asarray(pattern_BNTS), 1).any()
        v_BSNH = np.repeat(v_BSKH, cfg.heads // cfg.n_kv_heads, axis=2)
        z = np.einsum("BNTS,BSNH->BTNH", pattern_BNTS, v_BSNH)
        np.testing.assert_allclose(found[f"blocks.{i}.attn.hook_z"], z, atol=1e-5)
        if cfg.encoder_layers:
            np.testing.assert_allclose(found[f"blocks.{i}.cross_attn.hook_pattern"].sum(-1), 1.0, atol=1e-6)


@pytest.mark.parametrize("apart", [True, False])
def test_what_another_text_left_everywhere_makes_its_logits(cfg, apart):
    """Bitwise: the residual stream before the last layer holds all that comes after."""
    model, mine, other = model_of(cfg, apart=apart), sourced(cfg, seed=1), sourced(cfg, seed=2)
    last = f"blocks.{cfg.layers - 1}.hook_resid_pre"
    names = [last] + ([f"encoder.blocks.{cfg.encoder_layers - 1}.hook_resid_pre"] if cfg.encoder_layers else [])
    theirs = capture(model, other, [*names, LOGITS])
    patched = patch(model, mine, {name: theirs[name] for name in names})
    np.testing.assert_array_equal(patched, theirs[LOGITS])
    assert np.abs(patched - capture(model, mine, LOGITS)[LOGITS]).max() > 0.01


@pytest.mark.parametrize("apart", [True, False])
def test_patches_that_change_nothing_and_what_they_leave_behind(apart):
    cfg = CONFIGS["gemma"]
    model, rows = model_of(cfg, apart=apart), sourced(cfg)
    plain = capture(model, rows, LOGITS)[LOGITS]
    nothing = {"blocks.1.hook_resid_mid": Patch(0.0, jnp.zeros((), bool)), "blocks.0.attn.hook_z": Patch(added=0.0)}
    np.testing.assert_array_equal(patch(model, rows, nothing), plain)
    changed = patch(model, rows, {"blocks.2.hook_mlp_out": Patch(added=1.0)})
    assert np.abs(changed - plain).max() > 0.01
    np.testing.assert_array_equal(capture(model, rows, LOGITS)[LOGITS], plain)


@pytest.mark.parametrize("apart", [True, False])
def test_a_head_that_gives_zero_is_one_without_its_output_weights(apart):
    cfg, head = CONFIGS["gpt2"], 2
    model, rows = model_of(cfg, apart=False), sourced(cfg)
    where = jnp.arange(cfg.heads)[:, None] == head
    at = {"blocks.1.attn.hook_z": Patch(0.0, where), "blocks.1.attn.hook_pattern": Patch(added=0.0)}
    patched = patch(model_of(cfg, apart=apart), rows, at)
    kernel_LNHD = model.params["blocks"]["attention"]["out"]["kernel"]
    blocks_ = jax.tree.map(lambda x: x, model.params["blocks"])
    blocks_["attention"]["out"]["kernel"] = jnp.asarray(kernel_LNHD).at[1, head].set(0.0)
    without = SimpleNamespace(**vars(model) | {"params": model.params | {"blocks": blocks_}})
    np.testing.assert_allclose(patched, capture(without, rows, LOGITS)[LOGITS], atol=1e-5)


def test_attention_weights_can_be_changed():
    """With all its weight on the first token, what a head gives at every place is that token's value."""
    cfg = CONFIGS["llama"]
    model, rows = model_of(cfg), sourced(cfg)
    first = jax.nn.one_hot(jnp.zeros(12, int), 12)
    found = capture(
        model, rows, ["blocks.0.attn.hook_z", "blocks.0.attn.hook_v"], patches={"blocks.0.attn.hook_pattern": first}
    )
    z, v = found["blocks.0.attn.hook_z"], found["blocks.0.attn.hook_v"]
    np.testing.assert_allclose(z, np.broadcast_to(np.repeat(v, 2, axis=2)[:, :1], z.shape), atol=1e-6)


def test_under_jit_with_ids_and_over_devices():
    cfg = replace(CONFIGS["llama"], vocab=96)
    model, tokens = model_of(cfg, apart=False), ids(cfg)
    plain = capture(model, tokens, ["blocks.*.hook_resid_post", LOGITS])
    inside = jax.jit(lambda ids: capture(model, ids, ["blocks.*.hook_resid_post", LOGITS]))(tokens)
    mesh = build_mesh(Mesh(fsdp=2, tensor=2, data=2))
    params = jax.tree.map(
        lambda x, names: jax.device_put(x, placement(mesh, names, x.shape)), model.params, transformer.param_names(cfg)
    )
    with jax.set_mesh(mesh):
        spread = capture(SimpleNamespace(**vars(model) | {"params": params}), tokens, [*plain])
    for name, x in plain.items():
        np.testing.assert_allclose(inside[name], x, atol=1e-5 * np.abs(x).max())
        np.testing.assert_allclose(spread[name], x, atol=1e-5 * np.abs(x).max())


def test_texts_of_unequal_length_are_read_each_as_if_alone():
    cfg = CONFIGS["bert"]
    model, tokens = model_of(cfg), ids(cfg)
    both = capture(model, Read(tokens, np.array([12, 7])), [LOGITS])[LOGITS]
    alone = capture(model, Read(tokens[1:, :7]), [LOGITS])[LOGITS]
    np.testing.assert_allclose(both[1, :7], alone[0], atol=1e-5 * np.abs(alone).max())


@pytest.mark.parametrize("name", ["gemma", "mixtral", "bert", "t5"])
def test_unused_taps_leave_no_trace_in_a_train_step(name, monkeypatch, text_file):
    cfg = replace(CONFIGS[name], remat="products")

    def step():
        jax.clear_caches()

        def loss(params, tokens_BT):
            source = None
            if cfg.encoder_layers:
                source = transformer.encode(cfg, params, tokens_BT, tokens_BT)
            return transformer.trained(cfg, params, tokens_BT, tokens_BT, source=source)[0].sum()

        shape = jax.ShapeDtypeStruct((2, 8), jnp.int32)
        return str(jax.make_jaxpr(jax.grad(loss))(transformer.abstract_params(cfg), shape))

    with_taps = step()
    for module in (blocks, cross_attention, feedforward, moe, norms, transformer):
        if hasattr(module, "tap"):
            monkeypatch.setattr(module, "tap", lambda module, name, x, collection=None: x)
    assert step() == with_taps
    assert len(with_taps) > 10_000


def test_what_a_user_gets_wrong_is_one_line():
    model = model_of(CONFIGS["gpt2"])
    tokens = ids(model.cfg)
    with pytest.raises(UserError, match=r"'blocks.1.hook_resid_pst': .* did you mean blocks.1.hook_resid_post\?"):
        capture(model, tokens, "blocks.1.hook_resid_pst")
    with pytest.raises(UserError, match="blocks.7.hook_mlp_out"):
        patch(model, tokens, {"blocks.7.hook_mlp_out": 0.0})
    with pytest.raises(UserError, match=r"value has shape \(5, 32\); expected \(2, 12, 32\)"):
        patch(model, tokens, {"blocks.0.hook_mlp_out": np.zeros((5, 32))})
    with pytest.raises(UserError, match="a patch's value is 'zero'; expected numbers"):
        patch(model, tokens, {"blocks.0.hook_mlp_out": "zero"})
    with pytest.raises(UserError, match="no source: there is no encoder"):
        capture(model, tokens, LOGITS, source=tokens)
    with pytest.raises(UserError, match="expected a source"):
        capture(model_of(CONFIGS["t5"]), tokens, LOGITS)
