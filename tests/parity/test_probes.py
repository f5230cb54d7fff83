"""Probes beside scikit-learn's LogisticRegression on the same vectors."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from lmjax.interpret.probes import logistic_regression


@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_weights_are_those_of_scikit_learn(penalty):
    draws = np.random.default_rng(0)
    x_BD = draws.normal(size=(300, 12)).astype(np.float32)
    y_B = (x_BD @ draws.normal(size=(12, 4)) + draws.normal(size=(300, 4))).argmax(1)
    theirs = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=5_000).fit(x_BD.astype(np.float64), y_B)
    weights_CD, bias_C = logistic_regression(x_BD, y_B, 4, penalty=penalty)
    np.testing.assert_allclose(weights_CD, theirs.coef_, atol=1e-3)
    np.testing.assert_allclose(bias_C, theirs.intercept_ - theirs.intercept_.mean(), atol=1e-3)
