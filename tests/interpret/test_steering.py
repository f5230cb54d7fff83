"""Vectors that steer are differences of means; text written with patches is what reading the whole again would write."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.interpret import Patch, ablate, capture, patch
from lmjax.interpret.capture import LOGITS, Read, forward
from lmjax.interpret.steering import at_position, generate_with, steering_vector
from lmjax.language_model import LanguageModel
from tests import tiny
from tests.interpret.small import model_of
from tests.interpret.test_capture import ids

CFG = tiny.llama()
SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    return model_of(CFG)


def test_a_vector_is_the_difference_of_the_means_over_texts(model):
    one, other = ids(CFG, 3, 6, seed=1), ids(CFG, 2, 7, seed=2)
    x_BTD, y_BTD = (np.asarray(capture(model, tokens, SITE)[SITE]) for tokens in (one, other))
    for position, expected in (
        (-1, x_BTD[:, -1].mean(0) - y_BTD[:, -1].mean(0)),
        (2, x_BTD[:, 2].mean(0) - y_BTD[:, 2].mean(0)),
        ("mean", x_BTD.mean((0, 1)) - y_BTD.mean((0, 1))),
    ):
        np.testing.assert_allclose(steering_vector(model, one, other, SITE, position), expected, atol=1e-5)


def test_places_count_in_each_texts_own_tokens(model):
    """Filling up is no part of a text."""
    tokens = ids(CFG, 2, 6)
    ragged = Read(tokens, np.array([6, 4]))
    whole, short = (np.asarray(capture(model, tokens[i : i + 1, :n], SITE)[SITE][0]) for i, n in ((0, 6), (1, 4)))
    for position, expected in ((-1, [whole[5], short[3]]), (-4, [whole[2], short[0]]), (3, [whole[3], short[3]])):
        np.testing.assert_allclose(at_position(model, ragged, SITE, position), expected, atol=1e-5)
    means = [whole.mean(0), short.mean(0)]
    np.testing.assert_allclose(at_position(model, ragged, SITE, "mean"), means, atol=1e-5)


def test_the_sources_places_are_counted_at_the_sites_that_read_it():
    """Of rows whose two texts are not of one length."""
    model = model_of(tiny.translator())
    rows = Read(ids(model.cfg, 2, 5), np.array([5, 2]), ids(model.cfg, 2, 7, seed=1), np.array([3, 7]))
    for site in ("encoder.blocks.0.hook_resid_post", "blocks.1.cross_attn.hook_k"):
        x_BS = capture(model, rows, site)[site]
        np.testing.assert_array_equal(at_position(model, rows, site), x_BS[np.arange(2), [2, 6]])
        means = [x_BS[0, :3].mean(0), x_BS[1].mean(0)]
        np.testing.assert_allclose(at_position(model, rows, site, "mean"), means, atol=1e-5)
        parts = {site: None}
        whole = (3 * means[0] + 7 * means[1]) / 10
        found = ablate(model, rows, parts, how="mean", over=rows).logits
        np.testing.assert_allclose(found, patch(model, rows, {site: whole}), atol=1e-4)


def test_text_is_what_reading_the_whole_again_at_each_step_would_write(model):
    """Of two prompts of unequal length, with another vector for each and a head taken out."""
    olds = [ids(CFG, 1, n, seed=n)[0] for n in (3, 5)]
    added = jax.random.normal(jax.random.key(3), (2, 1, CFG.width))
    head = jnp.arange(CFG.heads)[:, None] == 1
    patches = {SITE: Patch(added=added), "blocks.0.attn.hook_z": Patch(0.0, head)}
    written = _written(model, olds, patches)
    for row, old in enumerate(olds):
        own = {SITE: Patch(added=added[row : row + 1]), "blocks.0.attn.hook_z": Patch(0.0, head)}
        text = list(old)
        for _ in range(6):
            # one program: filled up on the right, which no token before it sees
            tokens = np.pad(text, (0, 16 - len(text)))[None].astype(np.int32)
            logits_BTV = forward(CFG, model.params, Read(tokens), (LOGITS,), own)[LOGITS]
            text.append(int(logits_BTV[0, len(text) - 1].argmax()))
        assert written[row].tolist() == text
    assert not all((a == b).all() for a, b in zip(written, _written(model, olds, {}), strict=True))


def _written(model, olds, patches):
    """By a tokenizer whose texts are these prompts."""
    texts = {str(i): old for i, old in enumerate(olds)}
    policy = SimpleNamespace(bos=None, stops=())
    tokenizer = SimpleNamespace(policy=policy, vocab_size=CFG.vocab, encode=texts.get, decode=lambda row: row)
    own = SimpleNamespace(**vars(model) | {"tokenizer": tokenizer})
    return generate_with(own, list(texts), patches, max_new_tokens=6)


def test_without_patches_it_writes_as_generate_does(model):
    how = {"max_new_tokens": 6, "temperature": 1.0, "top_k": 50, "seed": 4}
    tokens = ids(CFG, 2, 5)
    theirs = LanguageModel(CFG, model.params, None, "m").generate(tokens, **how)
    np.testing.assert_array_equal(generate_with(model, tokens, {}, **how), theirs)


def test_what_a_user_gets_wrong_is_one_line(model):
    tokens = ids(CFG, 1, 4)
    with pytest.raises(UserError, match=r"a patch's added has shape \(1, 4, 32\); expected \(1, 1, 32\)"):
        generate_with(model, tokens, {SITE: Patch(added=np.zeros((1, 4, 32)))})
    with pytest.raises(UserError, match="attention weights are not changed while text is written"):
        generate_with(model, tokens, {"blocks.0.attn.hook_pattern": Patch(0.0)})
    with pytest.raises(UserError, match="expected a model of the next token"):
        generate_with(model_of(tiny.bert()), tokens, {})
    with pytest.raises(UserError, match="more than the model's context of 32"):
        generate_with(model, tokens, {}, max_new_tokens=40)
    with pytest.raises(UserError, match="position is 4, and the shortest text has 4 tokens"):
        steering_vector(model, tokens, tokens, SITE, 4)
    with pytest.raises(UserError, match="expected a number or 'mean'"):
        steering_vector(model, tokens, tokens, SITE, "last")
    with pytest.raises(UserError, match="expected one site with a vector for each token"):
        steering_vector(model, tokens, tokens, "blocks.*.hook_resid_post")
