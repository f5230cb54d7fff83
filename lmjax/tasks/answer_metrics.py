"""How good answers are: SQuAD's exact match and F1, with intervals of 95 %."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmjax.tasks.text_metrics import bootstrap, exact_match, f1, normalised, wilson, within


@dataclass(frozen=True)
class AnswerFigures:
    """Shares from 0 to 1, means over the questions. exact_match_interval: Wilson's; f1_interval: by bootstrap over the
    questions, None of one. answered, unanswered: (questions, exact match, F1) of those that have an answer, and of
    those that have none; None where all are of one kind."""

    questions: int
    exact_match: float
    exact_match_interval: tuple[float, float]
    f1: float
    f1_interval: tuple[float, float] | None
    answered: tuple[int, float, float] | None = None
    unanswered: tuple[int, float, float] | None = None

    def metrics(self) -> dict[str, float]:
        return {"exact_match": self.exact_match, "f1": self.f1}

    def lines(self) -> list[str]:
        """As a user reads it."""
        told = [
            f"exact match {self.exact_match:.4f}{within(self.exact_match_interval)}, {self.questions:,} questions",
            f"F1 {self.f1:.4f}{within(self.f1_interval)}",
        ]
        for name, part in (("with an answer", self.answered), ("without", self.unanswered)):
            if part is not None:
                told.append(f"{part[0]:,} {name}: exact match {part[1]:.4f}, F1 {part[2]:.4f}")
        return told


def answer_figures(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> AnswerFigures:
    """The best over the references of each question, by SQuAD's rules (evaluate-v2.0.py): references of which
    normalisation leaves nothing are none, and of a question without one the right prediction is such a text too, which
    counts in both figures."""
    said = [[text for text in texts if normalised(text)] for texts in references]
    right_Q, f1_Q = (
        np.array(
            [
                score(prediction, texts) if texts else float(not normalised(prediction))
                for prediction, texts in zip(predictions, said, strict=True)
            ]
        )
        for score in (exact_match, f1)
    )
    has_Q, count = np.array([bool(texts) for texts in references]), len(references)
    spread = bootstrap(lambda drawn: f1_Q[drawn].mean(-1), count)
    parts = (None, None)
    if has_Q.any() and not has_Q.all():
        parts = ((int(h.sum()), float(right_Q[h].mean()), float(f1_Q[h].mean())) for h in (has_Q, ~has_Q))
    return AnswerFigures(
        count, float(right_Q.mean()), tuple(wilson(float(right_Q.sum()), count)), float(f1_Q.mean()),
        None if spread is None else tuple(spread[1]), *parts,
    )  # fmt: skip
