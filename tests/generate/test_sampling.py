"""Sampling follows the limited distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from lmjax.errors import UserError
from lmjax.generate.sampling import choice, limited, next_token

LOGITS = jnp.array([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0]])


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def kept(**how):
    return np.isfinite(np.asarray(limited(LOGITS, choice(**{"temperature": 1.0} | how)))[0]).tolist()


def test_limits():
    p = softmax(np.asarray(LOGITS))[0]
    assert kept() == [True] * 6
    assert kept(top_k=2) == [True, True] + [False] * 4
    assert kept(top_k=100) == kept(top_k=10**12) == [True] * 6
    assert kept(top_k=1) == [True] + [False] * 5
    # the smallest set that reaches the probability
    assert kept(top_p=float(p[0]) - 1e-3) == [True] + [False] * 5
    assert kept(top_p=float(p[0]) + 1e-3) == [True, True] + [False] * 4
    assert kept(top_p=1e-9) == [True] + [False] * 5
    assert kept(min_p=float(p[2] / p[0]) - 1e-3) == [True] * 3 + [False] * 3
    assert kept(min_p=1.0) == [True] + [False] * 5
    assert kept(top_k=4, top_p=0.99, min_p=float(p[1] / p[0]) - 1e-3) == [True] * 2 + [False] * 4


def test_temperature_divides_before_the_limits():
    assert_allclose(limited(LOGITS, choice(temperature=0.5)), LOGITS / 0.5)
    assert kept(temperature=5.0, top_p=0.5) != kept(temperature=0.2, top_p=0.5)


@pytest.mark.parametrize("how", [{}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.2}, {"temperature": 2.0, "top_k": 5}])
def test_frequencies_follow_the_distribution(how):
    """Chi-squared of 20,000 draws; 5 degrees of freedom exceed 20.5 once in a thousand times, and the seed is fixed."""
    how = choice(**{"temperature": 1.0} | how)
    draws = 20_000
    keys = jax.random.split(jax.random.key(0), draws)
    tokens = jax.jit(next_token)(jnp.broadcast_to(LOGITS, (draws, 6)), how, keys)
    wanted = draws * softmax(np.asarray(limited(LOGITS, how)))[0]
    counts = np.bincount(tokens, minlength=6)
    assert (counts[wanted == 0] == 0).all()
    assert (((counts - wanted) ** 2)[wanted > 0] / wanted[wanted > 0]).sum() < 20.5


def test_zero_temperature_is_argmax_and_a_small_one_goes_there():
    keys = jax.random.split(jax.random.key(0), 1)
    for how in (choice(), choice(temperature=1e-3), choice(temperature=3.0, top_k=1)):
        assert next_token(LOGITS, how, keys).tolist() == [0]


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
    ],
)
def test_settings_out_of_range(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        choice(**bad)
