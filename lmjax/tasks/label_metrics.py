"""How good predicted labels are: accuracy, F1, a confusion matrix, with confidence intervals."""

from dataclasses import dataclass

import numpy as np

# of the normal distribution, for intervals of 95 %
Z = 1.959963984540054
CORNER = "true \\ predicted"
RESAMPLES = 2000


@dataclass(frozen=True)
class LabelFigures:
    """confusion: [true][predicted] counts, in the order of labels. interval: of the accuracy, by Wilson's formula; that
    of the macro F1 is a percentile bootstrap of 2,000 resamples; both of 95 %."""

    labels: tuple[str, ...]
    confusion: list[list[int]]
    accuracy: float
    interval: tuple[float, float]
    f1: dict[str, float]
    macro_f1: float
    f1_interval: tuple[float, float]

    def lines(self) -> list[str]:
        """As a user reads it."""
        count = sum(map(sum, self.confusion))
        width = max(len(label) for label in (*self.labels, CORNER))
        low, high = self.interval
        head = f"{CORNER:>{width}}  " + "  ".join(f"{label:>{width}}" for label in self.labels)
        return [
            f"accuracy {self.accuracy:.4f} (95 % from {low:.4f} to {high:.4f}, {count:,} records)",
            f"macro F1 {self.macro_f1:.4f} (95 % from {self.f1_interval[0]:.4f} to {self.f1_interval[1]:.4f}); "
            + ", ".join(f"{label} {value:.4f}" for label, value in self.f1.items()),
            head,
            *(
                f"{label:>{width}}  " + "  ".join(f"{count:>{width},}" for count in row)
                for label, row in zip(self.labels, self.confusion, strict=True)
            ),
        ]


def label_figures(labels: tuple[str, ...], true_R: np.ndarray, predicted_R: np.ndarray, seed: int = 0) -> LabelFigures:
    """true_R, predicted_R: numbers of labels. seed: of the bootstrap."""
    pairs = true_R * len(labels) + predicted_R
    confusion = counts(pairs, len(labels))
    scores = f1_scores(confusion)
    count = len(true_R)
    draws = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    macro = [f1_scores(counts(pairs[draw], len(labels))).mean() for draw in draws]
    correct = int(np.trace(confusion))
    low, high = np.percentile(macro, [2.5, 97.5])
    return LabelFigures(
        labels, confusion.tolist(), correct / count, wilson(correct, count),
        dict(zip(labels, scores.tolist(), strict=True)), float(scores.mean()), (float(low), float(high)),
    )  # fmt: skip


def counts(pairs_R: np.ndarray, labels: int) -> np.ndarray:
    """The confusion matrix of true x labels + predicted."""
    return np.bincount(pairs_R, minlength=labels * labels).reshape(labels, labels)


def f1_scores(confusion: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) of each label; 0 of one that neither occurs nor is predicted."""
    right = np.diag(confusion)
    return 2 * right / np.maximum(confusion.sum(0) + confusion.sum(1), 1)


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927, JASA 22, p. 209)."""
    share, spread = correct / count, Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * (share * (1 - share) / count + spread / (4 * count)) ** 0.5
    return middle - half, middle + half
