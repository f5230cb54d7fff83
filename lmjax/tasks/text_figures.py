"""How good texts are that a model wrote for records: BLEU and chrF of translations, SQuAD's figures of answers."""

from dataclasses import dataclass

import numpy as np

from lmjax.tasks import text_metrics
from lmjax.tasks.text_metrics import Interval, bootstrap, wilson


def within(interval: Interval | None, digits: int = 2) -> str:
    """An interval as it stands behind its figure; nothing for None."""
    return "" if interval is None else f" (95 %: {interval.low:.{digits}f} to {interval.high:.{digits}f})"


@dataclass(frozen=True)
class TranslationFigures:
    """By sacrebleu, from 0 to 100, with its signatures; intervals by bootstrap over the texts, None of one text."""

    texts: int
    bleu: float
    bleu_interval: Interval | None
    bleu_signature: str
    chrf: float
    chrf_interval: Interval | None
    chrf_signature: str

    def metrics(self) -> dict[str, float]:
        return {"bleu": self.bleu, "chrf": self.chrf}

    def lines(self) -> list[str]:
        return [
            f"BLEU {self.bleu:.2f}{within(self.bleu_interval)}, {self.texts:,} texts; {self.bleu_signature}",
            f"chrF {self.chrf:.2f}{within(self.chrf_interval)}; {self.chrf_signature}",
        ]


def translation_figures(texts: list[str], references: list[list[str]]) -> TranslationFigures:
    bleu, chrf = text_metrics.bleu(texts, references), text_metrics.chrf(texts, references)
    return TranslationFigures(
        len(texts), bleu.score, bleu.interval, bleu.signature, chrf.score, chrf.interval, chrf.signature
    )


@dataclass(frozen=True)
class AnswerFigures:
    """SQuAD v1.1's, from 0 to 1, the best of the references. exact_match_interval: Wilson's; f1_interval: by bootstrap
    over the answers, None of one."""

    answers: int
    exact_match: float
    exact_match_interval: Interval
    f1: float
    f1_interval: Interval | None

    def metrics(self) -> dict[str, float]:
        return {"exact_match": self.exact_match, "f1": self.f1}

    def lines(self) -> list[str]:
        return [
            f"exact match {self.exact_match:.4f}{within(self.exact_match_interval, 4)}, {self.answers:,} answers",
            f"F1 {self.f1:.4f}{within(self.f1_interval, 4)}",
        ]


def answer_figures(texts: list[str], references: list[list[str]]) -> AnswerFigures:
    both = list(zip(texts, references, strict=True))
    exact = np.array([text_metrics.exact_match(*pair) for pair in both])
    f1 = np.array([text_metrics.f1(*pair) for pair in both])
    spread = bootstrap(lambda index_RN: f1[index_RN].mean(1), len(f1))
    return AnswerFigures(
        len(both), float(exact.mean()), wilson(exact.sum(), len(exact)), float(f1.mean()), spread and spread[1]
    )
