"""Shares by gradients are finite differences, and add up to what they are shares of."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.interpret.attribution_patching import attribution_patching
from lmjax.interpret.capture import LOGITS, Read, capture, patch
from lmjax.interpret.gradients import gradient_times_input, integrated_gradients
from lmjax.interpret.patching import LogitDifference
from lmjax.interpret.tuned_lens import train
from lmjax.models.packed_params import pack_params
from lmjax.models.tap import Patch
from tests.interpret.small import model_of
from tests.interpret.test_capture import CONFIGS, ids, sourced


@pytest.fixture(scope="module")
def model():
    return model_of(replace(CONFIGS["gpt2"], layers=1))


def test_the_gradient_is_a_finite_difference(model):
    tokens, small = ids(model.cfg, rows=1), 1e-2
    found = capture(model, tokens, ["hook_embed", LOGITS])
    told = gradient_times_input(model, tokens, position=6)
    assert told.target == found[LOGITS][0, 6].argmax() and told.names == tuple(map(str, tokens[0]))
    assert not told.values[7:].any(), "a later token has no share"
    for t in (0, 3, 6):
        step = np.zeros_like(found["hook_embed"])
        step[0, t] = small * found["hook_embed"][0, t]
        more, less = (patch(model, tokens, {"hook_embed": Patch(added=x)})[0, 6, told.target] for x in (step, -step))
        np.testing.assert_allclose(told.values[t], (more - less) / (2 * small), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_integrated_gradients_add_up_the_better_the_more_steps(model, baseline):
    tokens = ids(model.cfg)
    few, many = (integrated_gradients(model, tokens, row=1, target=5, steps=s, baseline=baseline) for s in (4, 64))
    assert abs(many.error) < 1e-3 < abs(few.error)
    assert many.position == 11
    start = np.zeros(32) if baseline == "zero" else np.asarray(model.params["embedding"]).mean(0)
    of_start = patch(model, tokens, {"hook_embed": start})[1, 11, 5]
    np.testing.assert_allclose(many.total, capture(model, tokens, LOGITS)[LOGITS][1, 11, 5] - of_start, atol=1e-5)


def test_a_sharp_path_needs_no_more_steps_than_it_is_sharp():
    """From zeros, behind RMSNorm without positions, equal steps are off by a fifth and more."""
    model = model_of(replace(CONFIGS["llama"], layers=1))
    tokens = ids(model.cfg)
    told = integrated_gradients(model, tokens, steps=64, baseline="zero")
    assert abs(told.error) < 0.02 * abs(told.total)


def test_of_an_encoder_decoder_the_sources_tokens_have_shares_too():
    cfg = replace(CONFIGS["t5"], layers=1, encoder_layers=1)
    rows = sourced(cfg)
    told = integrated_gradients(model_of(cfg), rows, position=4, steps=48)
    assert told.values.shape == (9 + 12,) and told.names[:9] == tuple(map(str, rows.source[0]))
    assert np.abs(told.values[:9]).max() > 1e-3 and not told.values[9 + 5 :].any()
    assert abs(told.error) < 0.02 * abs(told.total)


def test_what_fills_up_a_row_changes_nothing():
    model = model_of(replace(CONFIGS["bert"], layers=1, masked_head=None, outputs=3))
    tokens = ids(model.cfg)
    filled = gradient_times_input(model, Read(tokens, np.array([12, 7])), row=1, target=2)
    alone = gradient_times_input(model, tokens[1:, :7], target=2)
    assert filled.position == alone.position == 0
    np.testing.assert_allclose(filled.values, alone.values, atol=1e-6)


def test_what_a_user_gets_wrong_is_one_line(model):
    tokens = ids(model.cfg)
    with pytest.raises(UserError, match="baseline 'none': expected zero or mean"):
        integrated_gradients(model, tokens, baseline="none")
    with pytest.raises(UserError, match="steps is 0; expected 1 or more"):
        integrated_gradients(model, tokens, steps=0)
    with pytest.raises(UserError, match="position 12: expected -12 to 11"):
        gradient_times_input(model, tokens, position=12)


def test_no_gradient_goes_through_weights_of_int8(model):
    """A vector is rounded to whole numbers there, the slope of which is 0."""
    tokens = ids(model.cfg)
    packed, half = (
        SimpleNamespace(**vars(model) | {"params": pack_params(model.cfg, model.params, weights)})
        for weights in ("int8", "bfloat16")
    )
    for ask in (
        lambda: gradient_times_input(packed, tokens),
        lambda: attribution_patching(packed, tokens, tokens[::-1], LogitDifference(target=3, against=5)),
        lambda: train(packed, tokens),
    ):
        with pytest.raises(UserError, match="no gradient goes through weights of int8"):
            ask()
    whole, rounded = (gradient_times_input(one, tokens, target=3).values for one in (model, half))
    np.testing.assert_allclose(rounded, whole, atol=0.05 * np.abs(whole).max())
