"""How far probabilities can be trusted: calibration error, Brier score, one temperature, accuracy against coverage.

Of N examples with up to C choices. log_p_NC: logarithms of what is proportional to probabilities, -inf where an example
has fewer choices. The confidence of an answer is the probability of the most probable choice, which is the answer.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lmjax.errors import UserError
from lmjax.tasks.text_metrics import BLOCK_BYTES, Interval, bootstrap, within

BINS = 15
# simulated answers of a model that is calibrated
DRAWS = 200
# shares of the examples, at which the accuracy of the most confident ones is told
COVERAGES = 100
TEMPERATURES = (1e-3, 1e3)
# characters of a bar that is drawn for an accuracy of 1
BAR = 40


class Bin(NamedTuple):
    """Answers with a confidence above low, up to high; confidence and accuracy: means over them, None of none."""

    low: float
    high: float
    examples: int
    confidence: float | None
    accuracy: float | None


class Covered(NamedTuple):
    """Of the most confident answers, this share of all: their accuracy, and the lowest confidence among them."""

    coverage: float
    accuracy: float
    confidence: float


@dataclass(frozen=True)
class Calibration:
    """temperature: the logarithms were divided by it. ece: expected calibration error over 15 bins of equal width (Guo
    et al. 2017, arXiv:1706.04599, eq. 3); adaptive_ece: over 15 of as many answers each (Nguyen and O'Connor 2015,
    arXiv:1508.05154). ece_if_calibrated: what a calibrated model with these confidences would have on so many examples,
    above 0 by chance alone. brier: mean over the examples of the sum over the choices of (p - 1[true])^2, 0 to 2 (Brier
    1950). nll: nats. aurc: the area under the share of wrong answers against coverage (Geifman and El-Yaniv 2017,
    arXiv:1705.08500). Intervals of 95 %, by bootstrap over the examples; None of one."""

    temperature: float
    examples: int
    accuracy: float
    confidence: float
    ece: float
    ece_interval_95: Interval | None
    ece_if_calibrated: float
    adaptive_ece: float
    adaptive_ece_interval_95: Interval | None
    brier: float
    brier_interval_95: Interval | None
    nll: float
    aurc: float
    aurc_interval_95: Interval | None
    reliability: list[Bin]
    adaptive_reliability: list[Bin]
    selective: list[Covered]

    def row(self) -> dict:
        """For a table."""
        return {
            "temperature": self.temperature, "confidence": self.confidence, "ece": self.ece,
            "ece_interval_95": self.ece_interval_95, "if_calibrated": self.ece_if_calibrated,
            "adaptive_ece": self.adaptive_ece, "brier": self.brier, "brier_interval_95": self.brier_interval_95,
            "nll": self.nll, "aurc": self.aurc,
        }  # fmt: skip

    def as_dict(self) -> dict:
        """For JSON: bins and the curve as objects."""
        lists = ("reliability", "adaptive_reliability", "selective")
        return self.__dict__ | {name: [one._asdict() for one in getattr(self, name)] for name in lists}

    def lines(self) -> list[str]:
        """As a user reads it."""
        scaled = "" if self.temperature == 1 else f"at temperature {self.temperature:.4f}: "
        return [
            f"{scaled}calibration error (ECE) {self.ece:.4f}{within(self.ece_interval_95)}, adaptive "
            f"{self.adaptive_ece:.4f}; a calibrated model would have {self.ece_if_calibrated:.4f} by chance",
            f"{scaled}Brier score {self.brier:.4f}{within(self.brier_interval_95)}, nats {self.nll:.4f}, mean "
            f"confidence {self.confidence:.4f} at an accuracy of {self.accuracy:.4f}",
        ]

    def selective_lines(self) -> list[str]:
        """Accuracy against coverage, in two lines."""
        points = [at_coverage(self.selective, k / 10) for k in range(1, 11)]
        shares = "  ".join(f"{point.coverage:.0%} {point.accuracy:.4f}" for point in points)
        return [
            f"accuracy of the most confident: {shares}",
            f"area under risk and coverage (AURC) {self.aurc:.4f}{within(self.aurc_interval_95)}",
        ]


def scaled(log_p_NC: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(N, C) log-probabilities in float64: log softmax(log_p / temperature)."""
    z_NC = np.asarray(log_p_NC, np.float64) / temperature
    z_NC = z_NC - z_NC.max(axis=1, keepdims=True)
    return z_NC - np.log(np.exp(z_NC).sum(axis=1, keepdims=True))


def calibration(log_p_NC: np.ndarray, true_N: np.ndarray, *, temperature: float = 1.0, seed: int = 0) -> Calibration:
    """true_N: which choice is right; seed: of the bootstrap."""
    log_NC, N = scaled(log_p_NC, temperature), len(true_N)
    p_NC, rows_N = np.exp(log_NC), np.arange(N)
    # of the logarithms as they came: rounding must not make equals of what were none
    answer_N = np.argmax(log_p_NC, axis=1)
    confidence_N, right_N = p_NC[rows_N, answer_N], (answer_N == true_N).astype(np.float64)
    brier_N = np.square(p_NC).sum(1) - 2 * p_NC[rows_N, true_N] + 1
    wide, adaptive = equal_widths(), equal_counts(confidence_N)
    errors = {name: Ece(confidence_N, right_N, edges) for name, edges in (("wide", wide), ("adaptive", adaptive))}
    risk = Risk(confidence_N, right_N)

    def interval(statistic: Callable[[np.ndarray], np.ndarray]) -> Interval | None:
        found = bootstrap(statistic, N, seed)
        return found and found[1]

    return Calibration(
        temperature=float(temperature), examples=N, accuracy=float(right_N.mean()),
        confidence=float(confidence_N.mean()), ece=errors["wide"].value, ece_interval_95=interval(errors["wide"]),
        ece_if_calibrated=ece_if_calibrated(confidence_N, wide, seed), adaptive_ece=errors["adaptive"].value,
        adaptive_ece_interval_95=interval(errors["adaptive"]), brier=float(brier_N.mean()),
        brier_interval_95=interval(lambda index_RN: brier_N[index_RN].mean(1)),
        nll=float(-log_NC[rows_N, true_N].mean()), aurc=risk.value, aurc_interval_95=interval(risk),
        reliability=bins(confidence_N, right_N, wide), adaptive_reliability=bins(confidence_N, right_N, adaptive),
        selective=risk.curve(),
    )  # fmt: skip


def equal_widths(count: int = BINS) -> np.ndarray:
    """The inner edges of so many bins of equal width; a bin has its upper edge (Guo et al., section 2)."""
    return np.linspace(0, 1, count + 1)[1:-1]


def equal_counts(confidence_N: np.ndarray, count: int = BINS) -> np.ndarray:
    """The inner edges of bins of as many answers each, as nearly as may be; equal confidences are never parted, so
    there may be fewer bins."""
    last = -(-len(confidence_N) * np.arange(1, count) // count) - 1
    return np.unique(np.sort(confidence_N)[np.maximum(last, 0)])


def bins(confidence_N: np.ndarray, right_N: np.ndarray, edges: np.ndarray) -> list[Bin]:
    """The reliability diagram."""
    bin_N, outer = np.searchsorted(edges, confidence_N), [0.0, *edges.tolist(), 1.0]
    found = []
    for b in range(len(outer) - 1):
        here = bin_N == b
        means = (float(confidence_N[here].mean()), float(right_N[here].mean())) if here.any() else (None, None)
        found.append(Bin(outer[b], outer[b + 1], int(here.sum()), *means))
    return found


class Ece:
    """Expected calibration error of resamples (R, N) of the examples, in bins that stay where they are."""

    def __init__(self, confidence_N: np.ndarray, right_N: np.ndarray, edges: np.ndarray):
        self._bin_N, self._bins = np.searchsorted(edges, confidence_N), len(edges) + 1
        self._gap_N = right_N - confidence_N

    def __call__(self, index_RN: np.ndarray) -> np.ndarray:
        return np.abs(_sums(self._bin_N[index_RN], self._gap_N[index_RN], self._bins)).sum(1) / index_RN.shape[1]

    @property
    def value(self) -> float:
        return float(self(np.arange(len(self._gap_N))[None])[0])


def _sums(group_RN: np.ndarray, value_RN: np.ndarray, groups: int) -> np.ndarray:
    """(R, groups): in each row the values of each group, summed."""
    R = len(group_RN)
    cells = group_RN + groups * np.arange(R)[:, None]
    return np.bincount(cells.ravel(), np.broadcast_to(value_RN, cells.shape).ravel(), R * groups).reshape(R, groups)


def ece_if_calibrated(confidence_N: np.ndarray, edges: np.ndarray, seed: int = 0) -> float:
    """The mean error where each answer is right with the probability of its confidence (consistency resampling,
    Broecker and Smith 2007)."""
    bin_N, rng, N = np.searchsorted(edges, confidence_N), np.random.default_rng(seed), len(confidence_N)
    rows, found = max(1, BLOCK_BYTES // (8 * N)), []
    for start in range(0, DRAWS, rows):
        right_RN = rng.random((min(rows, DRAWS - start), N)) < confidence_N
        gap_RN = right_RN - confidence_N
        found.append(np.abs(_sums(np.broadcast_to(bin_N, gap_RN.shape), gap_RN, len(edges) + 1)).sum(1) / N)
    return float(np.concatenate(found).mean())


class Risk:
    """Answers given from the most confident one on. Of equal confidences no order is better than another: every figure
    is the mean over all orders."""

    def __init__(self, confidence_N: np.ndarray, right_N: np.ndarray):
        # group 0 has the highest confidence
        self._levels, group_N = np.unique(-confidence_N, return_inverse=True)
        self._group_N, self._right_N = group_N, right_N
        self._harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, len(right_N) + 1))])

    def __call__(self, index_RN: np.ndarray) -> np.ndarray:
        """(R,) mean over k = 1..N of the share of wrong ones among the k most confident."""
        # there are many intermediates
        return np.concatenate([self._area(part_RN) for part_RN in np.array_split(index_RN, min(8, len(index_RN)))])

    def _area(self, index_RN: np.ndarray) -> np.ndarray:
        groups, N = len(self._levels), index_RN.shape[1]
        group_RN = self._group_N[index_RN]
        count_RG = _sums(group_RN, np.ones(()), groups)
        wrong_RG = _sums(group_RN, 1 - self._right_N[index_RN], groups)
        share_RG = wrong_RG / np.maximum(count_RG, 1)
        after_RG = np.cumsum(count_RG, 1)
        before_RG, wrong_before_RG = after_RG - count_RG, np.cumsum(wrong_RG, 1) - wrong_RG
        # sum over the places j of a group of (wrong before + (j - before) share) / j
        terms_RG = self._harmonic[after_RG.astype(int)] - self._harmonic[before_RG.astype(int)]
        return (count_RG * share_RG + (wrong_before_RG - before_RG * share_RG) * terms_RG).sum(1) / N

    @property
    def value(self) -> float:
        return float(self(np.arange(len(self._right_N))[None])[0])

    def curve(self) -> list[Covered]:
        """At every hundredth of the examples, rounded up; of few examples each number of them once."""
        N = len(self._right_N)
        order = np.argsort(self._group_N, kind="stable")
        mean_G = np.bincount(self._group_N, self._right_N) / np.bincount(self._group_N)
        accuracy_N = np.cumsum(mean_G[self._group_N[order]]) / np.arange(1, N + 1)
        confidence_N = -self._levels[self._group_N[order]]
        kept = np.unique(-(-N * np.arange(1, COVERAGES + 1) // COVERAGES))
        return [Covered(float(k / N), float(accuracy_N[k - 1]), float(confidence_N[k - 1])) for k in kept]


def at_coverage(curve: list[Covered], share: float) -> Covered:
    """The first point of a curve with at least this share of the examples."""
    return next(point for point in curve if point.coverage >= share - 1e-12)


def fitted_temperature(log_p_NC: np.ndarray, true_N: np.ndarray) -> float:
    """The T with the least negative log-likelihood of softmax(log_p / T) (Guo et al., section 4.2), which is convex in
    1 / T: the zero of its slope between 0.001 and 1000, by bisection. Where the logarithms are no better than chance
    the most even probabilities are best, and it is 1000. Raises UserError where the coldest would be best."""
    z_NC = np.asarray(log_p_NC, np.float64)
    z_NC = z_NC - z_NC.max(axis=1, keepdims=True)
    true_z_N, finite_NC = z_NC[np.arange(len(true_N)), true_N], np.where(np.isfinite(z_NC), z_NC, 0.0)

    def slope(inverse: float) -> float:
        p_NC = np.exp(scaled(z_NC, 1 / inverse))
        return float(((p_NC * finite_NC).sum(1) - true_z_N).mean())

    coldest, hottest = (math.log(1 / temperature) for temperature in TEMPERATURES)
    low, high = hottest, coldest
    if slope(math.exp(low)) >= 0:
        return TEMPERATURES[1]
    if slope(math.exp(high)) <= 0:
        right = float((np.argmax(z_NC, axis=1) == true_N).mean())
        raise UserError(
            f"of the {len(true_N)} examples to fit it on {right:.0%} are right, and no temperature above "
            f"{TEMPERATURES[0]:g} is best; expected more examples, some of them wrong"
        )
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) < 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def diagram(reliability: list[Bin]) -> list[str]:
    """A reliability diagram: # as far as the accuracy of a bin, | where its mean confidence is; without empty bins."""
    told = [f"{'confidence':<14}{'examples':>9}  accuracy: #, mean confidence: |"]
    for one in reliability:
        if one.examples:
            cells = list(("#" * round(one.accuracy * BAR)).ljust(BAR + 1))
            cells[round(one.confidence * BAR)] = "|"
            bar = "".join(cells).rstrip()
            told.append(f"{one.low:.2f} to {one.high:.2f}  {one.examples:>9,}  {bar}")
    return told
