"""The lens' last row is the model's own answer, and an earlier one what its last norm and head make of that layer."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from lmjax.errors import UserError
from lmjax.interpret.capture import LOGITS, Read, capture
from lmjax.interpret.lens import logit_lens
from tests import tiny
from tests.interpret.small import model_of
from tests.interpret.test_capture import CONFIGS, ids, sourced
from tests.reference import normalise


def answers(model, rows: Read):
    """(log-probabilities of the model itself, the residual stream before the first block)."""
    found = jax.device_get(capture(model, rows, ["blocks.0.hook_resid_pre", LOGITS]))
    return log_softmax(found[LOGITS].astype(np.float64), axis=-1), found["blocks.0.hook_resid_pre"]


@pytest.mark.parametrize("name", ["gemma", "bert", "t5"])
def test_the_last_row_is_the_models_own_answer(name):
    cfg = replace(CONFIGS[name], layers=1, encoder_layers=min(1, CONFIGS[name].encoder_layers))
    model, rows = model_of(cfg), sourced(cfg)._replace(lengths=np.array([12, 7]))
    lens, (own_BTV, _) = logit_lens(model, rows, top=3), answers(model, rows)
    assert lens.rows == ("embed", *map(str, range(cfg.layers))) and lens.ids.shape == (cfg.layers + 1, 2, 12, 3)
    there = np.arange(12) < np.array([[12], [7]])
    best = -np.sort(-own_BTV, axis=-1)[..., :3]
    np.testing.assert_allclose(lens.log_p[-1][there], best[there], atol=1e-5)
    np.testing.assert_array_equal(np.take_along_axis(own_BTV, lens.ids[-1], -1)[there].argmax(-1), 0)
    np.testing.assert_allclose(lens.entropy[-1][there], -(np.exp(own_BTV) * own_BTV).sum(-1)[there], atol=1e-5)
    np.testing.assert_allclose(lens.kl[-1], 0.0, atol=1e-6)
    assert (lens.kl[:-1][:, there] > 1e-3).all()
    following = np.roll(rows.tokens, -1, axis=1) if cfg.causal else rows.tokens
    expected = np.take_along_axis(own_BTV, following[..., None], -1)[..., 0]
    known = np.arange(12) < np.array([[12], [7]]) - cfg.causal
    np.testing.assert_allclose(lens.own_log_p[-1][known], expected[known], atol=1e-5)
    np.testing.assert_array_equal(np.isnan(lens.own_log_p), np.broadcast_to(~known, lens.own_log_p.shape))


def test_an_earlier_row_is_that_layer_through_the_last_norm_and_the_unembedding():
    cfg = CONFIGS["gpt2"]
    model, rows = model_of(cfg), sourced(cfg)
    own_BTV, x_BTD = answers(model, rows)
    hidden = normalise(x_BTD.astype(np.float64), jax.device_get(model.params["final_norm"]), cfg.norm)
    log_p = log_softmax(hidden @ np.asarray(model.params["embedding"]).T, axis=-1)
    lens = logit_lens(model, rows, top=1)
    np.testing.assert_array_equal(lens.ids[0, ..., 0], log_p.argmax(-1))
    np.testing.assert_allclose(lens.log_p[0, ..., 0], log_p.max(-1), atol=1e-5)
    np.testing.assert_allclose(lens.kl[0], (np.exp(own_BTV) * (own_BTV - log_p)).sum(-1), atol=1e-5)


def test_what_a_user_gets_wrong_is_one_line():
    model = model_of(CONFIGS["gpt2"])
    with pytest.raises(UserError, match="top is 98; expected 1 to 97, the vocabulary"):
        logit_lens(model, ids(model.cfg), top=98)
    with pytest.raises(UserError, match="m is a model of labels; expected one that predicts tokens"):
        logit_lens(model_of(tiny.gpt2(outputs=3)), ids(model.cfg))
