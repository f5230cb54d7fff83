"""How good predicted labels are: accuracy, F1 and a confusion matrix, with intervals of 95 %."""

from dataclasses import dataclass

import numpy as np

from lmjax.tasks.calibration_metrics import Calibration, diagram
from lmjax.tasks.text_metrics import bootstrap, confusion, label_f1, macro_f1, wilson, within

CORNER = "true \\ predicted"


@dataclass(frozen=True)
class LabelFigures:
    """confusion: [true][predicted] counts, in the order of labels. accuracy_interval: Wilson's; macro_f1_interval: by
    bootstrap over the records, None of one record. calibrations: of the probabilities as they are and, where the run
    keeps a temperature, with that; empty where only labels are known."""

    labels: tuple[str, ...]
    confusion: list[list[int]]
    accuracy: float
    accuracy_interval: tuple[float, float]
    f1: dict[str, float]
    macro_f1: float
    macro_f1_interval: tuple[float, float] | None
    calibrations: tuple[Calibration, ...] = ()

    def metrics(self) -> dict[str, float]:
        return {"accuracy": self.accuracy, "macro_f1": self.macro_f1}

    def lines(self) -> list[str]:
        """As a user reads it."""
        count, width = sum(map(sum, self.confusion)), max(map(len, (*self.labels, CORNER)))
        each = ", ".join(f"{label} {value:.4f}" for label, value in self.f1.items())
        return [
            f"accuracy {self.accuracy:.4f}{within(self.accuracy_interval)}, {count:,} records",
            f"macro F1 {self.macro_f1:.4f}{within(self.macro_f1_interval)}; {each}",
            *(
                "  ".join(f"{cell:>{width}}" for cell in row)
                for row in ((CORNER, *self.labels), *zip(self.labels, *zip(*self.confusion, strict=True), strict=True))
            ),
            *(line for one in self.calibrations for line in one.lines()),
            *(line for one in self.calibrations[-1:] for line in (*one.selective_lines(), *diagram(one.reliability))),
        ]


def label_figures(labels: tuple[str, ...], true_R: np.ndarray, predicted_R: np.ndarray) -> LabelFigures:
    """true_R, predicted_R: numbers of labels, of R records."""
    counts_LL = confusion(true_R, predicted_R, len(labels))
    spread = bootstrap(lambda drawn: macro_f1(confusion(true_R[drawn], predicted_R[drawn], len(labels))), len(true_R))
    correct = int(np.trace(counts_LL))
    return LabelFigures(
        labels, counts_LL.tolist(), correct / len(true_R), tuple(wilson(correct, len(true_R))),
        dict(zip(labels, label_f1(counts_LL).tolist(), strict=True)), float(macro_f1(counts_LL)),
        None if spread is None else tuple(spread[1]),
    )  # fmt: skip
