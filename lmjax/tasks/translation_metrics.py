"""How good translations are: BLEU and chrF, with intervals of 95 %."""

from dataclasses import dataclass

from lmjax.tasks import text_metrics
from lmjax.tasks.text_metrics import Interval


def _within(interval: Interval | None) -> str:
    return "" if interval is None else f" (95 %: {interval.low:.2f} to {interval.high:.2f})"


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
            f"BLEU {self.bleu:.2f}{_within(self.bleu_interval)}, {self.texts:,} texts; {self.bleu_signature}",
            f"chrF {self.chrf:.2f}{_within(self.chrf_interval)}; {self.chrf_signature}",
        ]


def translation_figures(texts: list[str], references: list[list[str]]) -> TranslationFigures:
    bleu, chrf = text_metrics.bleu(texts, references), text_metrics.chrf(texts, references)
    return TranslationFigures(
        len(texts), bleu.score, bleu.interval, bleu.signature, chrf.score, chrf.interval, chrf.signature
    )
