"""How good translations are: BLEU and chrF, with intervals of 95 %."""

from dataclasses import dataclass

from lmjax.tasks import text_metrics
from lmjax.tasks.text_metrics import Interval, within


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
            f"BLEU {self.bleu:.2f}{within(self.bleu_interval, 2)}, {self.texts:,} texts; {self.bleu_signature}",
            f"chrF {self.chrf:.2f}{within(self.chrf_interval, 2)}; {self.chrf_signature}",
        ]


def translation_figures(texts: list[str], references: list[list[str]]) -> TranslationFigures:
    bleu, chrf = text_metrics.bleu(texts, references), text_metrics.chrf(texts, references)
    return TranslationFigures(
        len(texts), bleu.score, bleu.interval, bleu.signature, chrf.score, chrf.interval, chrf.signature
    )
