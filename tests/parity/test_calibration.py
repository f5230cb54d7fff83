"""Reliability, Brier score and log loss are scikit-learn's."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from lmjax.tasks.calibration_metrics import calibration, scaled
from tests.tasks.test_calibration_metrics import planted


def test_bins_and_scores():
    log_p_NC, true_N = planted(4000, 1.3)
    one = calibration(log_p_NC, true_N)
    p_NC = np.exp(scaled(log_p_NC))
    confidence_N, right_N = p_NC.max(1), p_NC.argmax(1) == true_N
    accuracy_B, confidence_B = calibration_curve(right_N, confidence_N, n_bins=15)
    filled = [b for b in one.reliability if b.examples]
    assert [b.accuracy for b in filled] == pytest.approx(accuracy_B.tolist(), abs=1e-12)
    assert [b.confidence for b in filled] == pytest.approx(confidence_B.tolist(), abs=1e-12)
    counts_B = np.array([b.examples for b in filled])
    assert one.ece == pytest.approx(np.sum(counts_B * np.abs(accuracy_B - confidence_B)) / len(true_N), abs=1e-12)
    assert one.brier == pytest.approx(brier_score_loss(true_N, p_NC, scale_by_half=False), abs=1e-12)
    assert one.nll == pytest.approx(log_loss(true_N, p_NC), abs=1e-12)
