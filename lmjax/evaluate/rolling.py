"""Perplexity of whole texts, every token scored once, over words, bytes and tokens."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lmjax.errors import UserError, at, path_text
from lmjax.evaluate.averages import figure_of
from lmjax.evaluate.likelihood import prefix_ids, protocol_of, rolling_pairs, rolling_sums
from lmjax.evaluate.records import opened
from lmjax.evaluate.result import Figure, Result
from lmjax.evaluate.settings import Settings
from lmjax.language_model import LanguageModel


def as_perplexity(nats: np.ndarray) -> np.ndarray:
    """Of nats a word, byte or token; as much as a float holds."""
    return np.exp(np.minimum(nats, 700.0))


def as_bits(nats: np.ndarray) -> np.ndarray:
    return nats / math.log(2)


class Scored(NamedTuple):
    """Of N texts. nats_N: minus log p of each. sizes: its words, bytes and scored tokens."""

    nats_N: np.ndarray
    sizes: dict[str, np.ndarray]

    def of(self, here_N: np.ndarray) -> "Scored":
        """Some of the texts."""
        return Scored(self.nats_N[here_N], {unit: size_N[here_N] for unit, size_N in self.sizes.items()})


@dataclass(frozen=True)
class Perplexity:
    """Texts: the `text` of each line of a .jsonl file, any other file as one. places: where each stands."""

    settings: Settings
    texts: list[str]
    places: list[str]

    @staticmethod
    def of(settings: Settings) -> "Perplexity":
        """Raises UserError where there is no text."""
        found = []
        for name, content, records in opened(settings.data, "--data"):
            lines = [(name, content)] if records is None else [(one.where, one.text("text")) for one in records]
            found += [(where, text) for where, text in lines if text]
        if not found:
            raise UserError(f"--data {path_text(settings.data)}: no text in it")
        places, texts = zip(*found[: settings.limit], strict=True)
        return Perplexity(settings, list(texts), list(places))

    def run(self, model: LanguageModel) -> Result:
        return self.result(model, self.scored(model))

    def scored(self, model: LanguageModel) -> Scored:
        """Raises UserError where no token follows another."""
        # BOS is given and not scored
        ids = []
        for where, text in zip(self.places, self.texts, strict=True):
            with at(where):
                ids.append(model.tokenizer.encode(text))
        prefix = prefix_ids(model)
        pairs = [rolling_pairs(prefix, one, model.cfg.context) for one in ids]
        scored = np.array([sum(len(pair.continuation) for pair in parts) for parts in pairs])
        if scored.sum() == 0:
            raise UserError(f"--data {path_text(self.settings.data)}: no token that follows another")
        sizes = {
            "word": np.array([len(re.split(r"\s+", text)) for text in self.texts]),
            "byte": np.array([len(text.encode()) for text in self.texts]),
            "token": scored,
        }
        return Scored(-rolling_sums(model, pairs), sizes)

    def result(self, model: LanguageModel, scored: Scored) -> Result:
        """Of all texts together."""
        figures = {f"{unit}_perplexity": self.rate(scored, unit, as_perplexity) for unit in scored.sizes}
        figures["bits_per_byte"] = self.rate(scored, "byte", as_bits)
        protocol = {
            "scored_by": f"log p of every token once, in windows of {model.cfg.context} given the token before them, "
            "the last one of a text given as much as there is room for",
            "words": "what white space parts, as lm-eval counts",
            "intervals": "bootstrap over the texts",
            "limit": self.settings.limit,
            **protocol_of(model),
        }
        totals = {f"{unit}s": int(size.sum()) for unit, size in scored.sizes.items()}
        totals["nats"] = float(scored.nats_N.sum())
        return Result("perplexity", len(self.texts), protocol, figures, extra={"totals": totals})

    def rate(self, scored: Scored, per: str, unit: Callable[[np.ndarray], np.ndarray]) -> Figure:
        """unit(all nats over all sizes of a kind); each text counts as much as it has."""
        nats_N, size_N = scored.nats_N, scored.sizes[per]

        def statistic(index_RN: np.ndarray) -> np.ndarray:
            return unit(nats_N[index_RN].sum(1) / np.maximum(size_N[index_RN].sum(1), 1))

        return figure_of(statistic, len(nats_N), self.settings.seed)
