"""Calibration: by hand, of predictors that are made to be calibrated or not; temperature found."""

import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.tasks.calibration_metrics import (
    Ece,
    Risk,
    at_coverage,
    bins,
    calibration,
    diagram,
    ece_if_calibrated,
    equal_counts,
    equal_widths,
    fitted_temperature,
    scaled,
)


def planted(count: int, temperature: float, seed: int = 0, choices: int = 4):
    """(log_p_NC, true_N): answers drawn from softmax(log_p / temperature)."""
    rng = np.random.default_rng(seed)
    log_p_NC = rng.normal(0, 2, (count, choices))
    p_NC = np.exp(scaled(log_p_NC, temperature))
    return log_p_NC, (rng.random((count, 1)) > p_NC.cumsum(1)).sum(1)


@pytest.fixture(scope="module")
def many():
    log_p_NC, true_N = planted(4000, 1.0)
    return log_p_NC, true_N, calibration(log_p_NC, true_N)


def test_ece_by_hand():
    confidence_N, right_N = np.array([0.5, 0.55, 0.9, 0.95, 1.0]), np.array([1, 0, 1, 0, 1.0])
    # of ten bins: (0.4, 0.5], (0.5, 0.6], (0.8, 0.9], (0.9, 1]
    expected = (abs(1 - 0.5) + abs(0 - 0.55) + abs(1 - 0.9) + 2 * abs(0.5 - 0.975)) / 5
    assert Ece(confidence_N, right_N, equal_widths(10)).value == pytest.approx(expected, abs=1e-15)
    found = [one for one in bins(confidence_N, right_N, equal_widths(10)) if one.examples]
    assert [one.examples for one in found] == [1, 1, 1, 2]
    assert found[-1] == (0.9, 1.0, 2, pytest.approx(0.975), 0.5)
    # two bins of as many answers: what is equal is never parted
    assert equal_counts(np.array([0.3, 0.5, 0.5, 0.5, 0.9]), 2).tolist() == [0.5]
    assert equal_counts(np.array([0.4, 0.4, 0.4]), 15).tolist() == [0.4]
    assert (
        diagram([one for one in found if one.low > 0.85])[1] == "0.90 to 1.00          2  " + "#" * 20 + " " * 19 + "|"
    )


def test_a_calibrated_predictor_has_none(many):
    _, _, one = many
    assert one.ece < 0.025 and one.adaptive_ece < 0.025
    assert one.ece == pytest.approx(one.ece_if_calibrated, abs=0.01)
    assert one.accuracy == pytest.approx(one.confidence, abs=0.02)
    log_p_NC, true_N = planted(300, 1.0, seed=1)
    few = calibration(log_p_NC, true_N)
    # what a calibrated one would have by chance is more, the fewer they are
    assert few.ece_if_calibrated > 2.5 * one.ece_if_calibrated and few.ece == pytest.approx(
        few.ece_if_calibrated, abs=0.03
    )
    surer = calibration(2 * log_p_NC, true_N)
    assert surer.ece > 2 * surer.ece_if_calibrated and surer.nll > few.nll


def test_figures_by_hand(many):
    log_p_NC, true_N, one = many
    p_NC = np.exp(log_p_NC) / np.exp(log_p_NC).sum(1, keepdims=True)
    truth_NC = np.eye(4)[true_N]
    assert one.brier == pytest.approx(((p_NC - truth_NC) ** 2).sum(1).mean(), abs=1e-12)
    assert one.nll == pytest.approx(-(np.log(p_NC) * truth_NC).sum(1).mean(), abs=1e-12)
    confidence_N, right_N = p_NC.max(1), p_NC.argmax(1) == true_N
    gaps = []
    for b in range(15):
        here = (confidence_N > b / 15) & (confidence_N <= (b + 1) / 15)
        gaps.append(abs(right_N[here].sum() - confidence_N[here].sum()))
    assert one.ece == pytest.approx(sum(gaps) / 4000, abs=1e-12)
    parts = zip(*(np.array_split(x[np.argsort(confidence_N)], 15) for x in (confidence_N, right_N)), strict=True)
    adaptive = sum(abs(r.sum() - c.sum()) for c, r in parts) / 4000
    assert one.adaptive_ece == pytest.approx(adaptive, abs=2e-4)
    for interval, value in ((one.brier_interval_95, one.brier), (one.aurc_interval_95, one.aurc)):
        assert interval.low < value < interval.high


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_a_planted_temperature_is_found_and_changes_no_answer(temperature):
    log_p_NC, true_N = planted(10_000, temperature)
    # choices that are not there change nothing
    padded, rows_N = np.pad(log_p_NC - 300, ((0, 0), (0, 1)), constant_values=-np.inf), np.arange(len(true_N))
    found = fitted_temperature(padded, true_N)
    assert found == pytest.approx(temperature, rel=0.03)
    assert found == pytest.approx(fitted_temperature(log_p_NC, true_N), rel=1e-9)

    def nats(t):
        return -scaled(padded, t)[rows_N, true_N].mean()

    assert nats(found) <= min(nats(1.0), nats(found * 0.99), nats(found * 1.01)) + 1e-12
    assert (scaled(padded, found).argmax(1) == padded.argmax(1)).all()
    p_NC = np.exp(scaled(padded, found))
    assert Ece(p_NC.max(1), (p_NC.argmax(1) == true_N).astype(float), equal_widths()).value < 0.02


def test_all_right_has_no_temperature_and_no_better_than_chance_the_highest():
    log_p_NC, _ = planted(50, 1.0)
    with pytest.raises(UserError, match="of the 50 examples to fit it on 100% are right"):
        fitted_temperature(log_p_NC, log_p_NC.argmax(1))
    assert fitted_temperature(log_p_NC, log_p_NC.argmin(1)) == 1000
    assert fitted_temperature(np.zeros((3, 2)), np.array([0, 1, 0])) == 1000


def test_risk_is_the_mean_over_the_orders_of_equals():
    rng = np.random.default_rng(0)
    confidence_N, right_N = rng.integers(1, 4, 12) / 4, rng.integers(0, 2, 12).astype(float)
    risk, areas, curves = Risk(confidence_N, right_N), [], []
    for _ in range(4000):
        order = rng.permutation(12)
        order = order[np.argsort(-confidence_N[order], kind="stable")]
        right = np.cumsum(right_N[order]) / np.arange(1, 13)
        areas.append(1 - right.mean())
        curves.append(right)
    assert risk.value == pytest.approx(np.mean(areas), abs=4 * np.std(areas) / 63)
    accuracy = [point.accuracy for point in risk.curve()]
    np.testing.assert_allclose(accuracy, np.mean(curves, 0), atol=0.04)
    # the mean of the curve is the area, exactly
    assert risk.value == pytest.approx(1 - np.mean(accuracy), abs=1e-12)
    assert accuracy[-1] == pytest.approx(right_N.mean()) and at_coverage(risk.curve(), 0.5).coverage == 0.5
    resample = rng.integers(0, 12, (3, 12))
    alone = [Risk(confidence_N[index], right_N[index]).value for index in resample]
    np.testing.assert_allclose(risk(resample), alone, atol=1e-12)


def test_what_is_expected_of_a_calibrated_model_by_hand():
    # one answer with confidence 0.8: right in 4 of 5 cases, 0.8 * 0.2 + 0.2 * 0.8
    assert ece_if_calibrated(np.array([0.8]), equal_widths()) == pytest.approx(0.32, abs=0.08)
    one = calibration(np.log([[0.8, 0.2]]), np.array([1]))
    assert one.ece_interval_95 is None and one.brier == pytest.approx(2 * 0.64) and one.aurc == 1
