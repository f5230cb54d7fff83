"""The same weights in TransformerLens: the same numbers at the same sites, and of the same analyses."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens import head_detector as theirs

from lmjax.interpret import capture, patch, sites
from lmjax.interpret.capture import LOGITS, Read
from lmjax.interpret.circuits import singular_values
from lmjax.interpret.direct import components, direct_attribution
from lmjax.interpret.heads import right_places, scores_of_text
from lmjax.interpret.lens import logit_lens
from lmjax.models.tap import Patch
from tests import tiny

T = 12


@pytest.fixture(scope="module")
def original():
    """GPT-2's shape, of small random weights, biases and scales too."""
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=32, n_ctx=32, n_heads=4, d_head=8, d_mlp=128, act_fn="gelu_new", d_vocab=97,
        normalization_type="LN", seed=0, device="cpu",
    )  # fmt: skip
    model = HookedTransformer(cfg)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator) + name.endswith(".w"))
        model.unembed.b_U.zero_()
    return model.eval()


@pytest.fixture(scope="module")
def tokens():
    """Random tokens, said twice."""
    half = np.random.default_rng(0).integers(0, 97, (2, T // 2))
    return np.concatenate([half, half], axis=1).astype(np.int32)


@pytest.fixture(scope="module")
def found(original, tokens):
    """(their logits, what stood at their sites)."""
    with torch.no_grad():
        return original.run_with_cache(torch.tensor(tokens).long())


@pytest.fixture(scope="module")
def ours(original):
    weights = {name: x.numpy() for name, x in original.state_dict().items()}

    def layer(i):
        of = lambda name: weights[f"blocks.{i}.{name}"]
        projections = {
            name: {"kernel": of(f"attn.W_{name.upper()}").transpose(1, 0, 2), "bias": of(f"attn.b_{name.upper()}")}
            for name in ("q", "k", "v")
        }
        return {
            "attention": projections | {"out": {"kernel": of("attn.W_O"), "bias": of("attn.b_O")}},
            "attention_norm": {"scale": of("ln1.w"), "bias": of("ln1.b")},
            "feedforward_norm": {"scale": of("ln2.w"), "bias": of("ln2.b")},
            "feedforward": {
                "up": {"kernel": of("mlp.W_in"), "bias": of("mlp.b_in")},
                "down": {"kernel": of("mlp.W_out"), "bias": of("mlp.b_out")},
            },
        }

    params = {
        "embedding": weights["embed.W_E"], "positions": weights["pos_embed.W_pos"], "blocks": (layer(0), layer(1)),
        "final_norm": {"scale": weights["ln_final.w"], "bias": weights["ln_final.b"]},
        "unembedding": weights["unembed.W_U"].T,
    }  # fmt: skip
    return SimpleNamespace(cfg=tiny.gpt2(tied=False), params=params, tokenizer=None, path=Path("m"))


def test_what_stands_at_every_site_is_the_same(original, ours, tokens, found):
    logits, cache = found
    mine = capture(ours, tokens, "*")
    assert set(sites(ours)) <= set(cache)
    weights = original.state_dict()
    for name in sites(ours):
        expected = cache[name].numpy()
        if name.endswith(".hook_normalized"):
            # theirs stands before a norm's scale and bias, ours behind them
            norm = name.removesuffix(".hook_normalized")
            expected = expected * weights[f"{norm}.w"].numpy() + weights[f"{norm}.b"].numpy()
        finite = np.isfinite(expected)
        np.testing.assert_allclose(np.asarray(mine[name])[finite], expected[finite], atol=1e-4, err_msg=name)
    np.testing.assert_allclose(mine[LOGITS], logits.numpy(), atol=1e-4)


def test_what_comes_of_a_changed_head_is_the_same(original, ours, tokens):
    def without(z, hook):
        z[:, :, 2] = 0.0
        return z

    with torch.no_grad():
        expected = original.run_with_hooks(torch.tensor(tokens).long(), fwd_hooks=[("blocks.0.attn.hook_z", without)])
    where = (np.arange(4) == 2)[:, None]
    np.testing.assert_allclose(patch(ours, tokens, {"blocks.0.attn.hook_z": Patch(0.0, where)}), expected, atol=1e-4)


def test_heads_write_the_same(ours, tokens, found):
    _, cache = found
    with torch.no_grad():
        cache.compute_head_results()
        stack, labels = cache.stack_head_results(return_labels=True)
    names, parts = components(ours, tokens)
    for label, expected in zip(labels, stack.numpy(), strict=True):
        np.testing.assert_allclose(parts[names.index(label)], expected, atol=1e-4)
    assert len(labels) == 8


def test_shares_of_a_logit_are_the_same(original, ours, tokens, found):
    """Theirs leave out the last norm's scale, which they expect to be folded into the unembedding."""
    _, cache = found
    place, target, against = 7, 3, 5
    with torch.no_grad():
        stack, labels = cache.stack_head_results(return_labels=True)
        scaled = cache.apply_ln_to_stack(stack, layer=-1)[:, 0, place] * original.ln_final.w
        direction = original.unembed.W_U[:, target] - original.unembed.W_U[:, against]
        expected = dict(zip(labels, (scaled @ direction).numpy(), strict=True))
    told = direct_attribution(ours, tokens, target=target, against=against, position=place)
    for label, value in expected.items():
        np.testing.assert_allclose(told.values[told.names.index(label)], value, atol=1e-4)


def test_the_logit_lens_is_the_same(original, ours, tokens, found):
    _, cache = found
    lens = logit_lens(ours, tokens, top=97)
    with torch.no_grad():
        for row, name in enumerate(["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]):
            log_p = original.unembed(original.ln_final(cache[name])).log_softmax(-1).numpy()
            mine = np.take_along_axis(lens.log_p[row], np.argsort(lens.ids[row], axis=-1), axis=-1)
            np.testing.assert_allclose(mine, log_p, atol=1e-4)


def test_heads_score_the_same(ours, tokens, found):
    """Theirs are divided by all tokens, ours by those that have a right place."""
    _, cache = found
    patterns = {
        "previous": theirs.get_previous_token_head_detection_pattern,
        "duplicate": theirs.get_duplicate_token_head_detection_pattern,
        "induction": theirs.get_induction_head_detection_pattern,
    }
    text = tokens[:1]
    mine, right = scores_of_text(ours, text), right_places(Read(text))
    for name, function in patterns.items():
        wanted = function(torch.tensor(text).long())
        np.testing.assert_array_equal(right[name][0], wanted.numpy() > 0)
        share = right[name].any(-1).mean()
        for layer in range(2):
            for head in range(4):
                score = theirs.compute_head_attention_similarity_score(
                    cache[f"blocks.{layer}.attn.hook_pattern"][0, head], wanted,
                    exclude_bos=False, exclude_current_token=False, error_measure="mul",
                )  # fmt: skip
                np.testing.assert_allclose(mine[name][layer, head] * share, score, atol=1e-4)


def test_singular_values_are_the_same(original, ours):
    mine = singular_values(ours)
    with torch.no_grad():
        for name, circuit in (("qk", original.QK), ("ov", original.OV)):
            np.testing.assert_allclose(mine[name], circuit.svd()[1].numpy(), atol=1e-4)
