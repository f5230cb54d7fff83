"""A probe finds what is there, does not find what is not, and minimises what it says."""

import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.interpret.probes import fitted, logistic_regression, probe
from lmjax.interpret.steering import at_position
from tests import tiny
from tests.interpret.small import model_of
from tests.interpret.test_capture import ids


def test_at_the_minimum_the_gradient_is_zero():
    """In float64, by hand: sum over rows of (p - y) x^T + penalty W, and of (p - y) for the bias."""
    draws = np.random.default_rng(0)
    x_BD, y_B = draws.normal(size=(60, 5)), draws.integers(0, 3, 60)
    for penalty in (0.1, 10.0):
        weights_CD, bias_C = logistic_regression(x_BD, y_B, 3, penalty=penalty)
        logits_BC = x_BD @ weights_CD.T + bias_C
        p_BC = np.exp(logits_BC) / np.exp(logits_BC).sum(1, keepdims=True)
        left_BC = p_BC - np.eye(3)[y_B]
        np.testing.assert_allclose(left_BC.T @ x_BD + penalty * weights_CD, 0, atol=2e-3)
        np.testing.assert_allclose(left_BC.sum(0), 0, atol=2e-3)


def test_a_planted_direction_is_found_and_shuffled_labels_are_not():
    draws = np.random.default_rng(1)
    direction_D = draws.normal(size=24)
    direction_D /= np.linalg.norm(direction_D)
    labels = draws.choice(["no", "yes"], 800)
    # other numbers vary far more, and have a mean
    x_BD = draws.normal(size=(800, 24)) + 4.0
    x_BD += 6 * np.outer(labels == "yes", direction_D)
    found = fitted(x_BD.astype(np.float32), labels)
    between_D = found.weights_CD[1] - found.weights_CD[0]
    assert between_D @ direction_D / np.linalg.norm(between_D) > 0.9
    assert found.accuracy > 0.97
    assert found.interval.low < found.accuracy <= found.interval.high
    assert found.held_out == 200
    assert 0.35 < found.control < 0.65
    assert found(x_BD[:5]) == list(labels[:5])


def test_the_first_token_can_be_read_where_it_stands():
    """Of a model's site: the token at position 0 is in the stream there, and is one of three."""
    cfg = tiny.gpt2()
    model, tokens = model_of(cfg), ids(cfg, 90, 4)
    tokens[:, 0] = 5 + tokens[:, 0] % 3
    site = "blocks.0.hook_resid_post"
    found = probe(model, tokens, tokens[:, 0].tolist(), site, 0, share=0.3)
    assert (found.accuracy, found.held_out, found.labels) == (1.0, 27, (5, 6, 7))
    assert found.majority < 0.6
    assert found(at_position(model, tokens, site, 0)) == tokens[:, 0].tolist()


def test_what_a_user_gets_wrong_is_one_line():
    x_BD = np.zeros((4, 2), np.float32)
    for labels, share, message in (
        ([1, 2, 1], 0.25, "4 texts and 3 labels"), ([1, 1, 1, 1], 0.25, "all are 1; expected at least two"),
        ([1, "a", 1, "a"], 0.25, "labels: int and str; expected all of one type"),
        ([1, 2, 1, 2], 0.01, "share is 0.01: 0 of 4 texts would be held out"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            fitted(x_BD, labels, share=share)
