"""What of an evaluation text was in the training text: n-grams of tokens that both have (GPT-3, arXiv:2005.14165,
appendix C, counts 8 to 13 words; PaLM and others tokens), and the score of the texts that are clean.

The n-grams of the evaluation are in memory; the training tokens are read a block at a time, and a hash decides what is
compared token by token, so what is reported is exact.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lmjax.data.store import TokenStream
from lmjax.data.templates import filled
from lmjax.errors import UserError, at, path_text
from lmjax.evaluate.averages import figure_of
from lmjax.evaluate.domains import domain_row
from lmjax.evaluate.result import Result, share
from lmjax.evaluate.rolling import Perplexity
from lmjax.evaluate.settings import Settings
from lmjax.evaluate.training_text import streams
from lmjax.language_model import LanguageModel

NGRAM = 13
# training tokens that are looked at together
BLOCK = 1 << 20
# of the hash, by which most n-grams are known at once not to be there
BITS = 22
# an odd number with no pattern in its bits (Steele and Vigna, arXiv:2001.05304)
MULTIPLIER = np.uint64(0xD1342543DE82EF95)
# texts that are named in the JSON
NAMED = 50


def hashes(ids_NI: Iterable[np.ndarray]) -> np.ndarray:
    """(I,) of n-grams, whose first ids come first, then their second ones: a polynomial modulo 2^64."""
    found = np.uint64(0)
    for ids_I in ids_NI:
        found = found * MULTIPLIER + (ids_I.astype(np.uint64) + np.uint64(1))
    return found


class Grams:
    """The different n-grams of some texts, as ids."""

    def __init__(self, texts: list[np.ndarray], n: int):
        self.n = n
        none = np.zeros((0, n), np.int32)
        each = [np.lib.stride_tricks.sliding_window_view(ids, n) if len(ids) >= n else none for ids in texts]
        grams_GN, which = np.unique(np.concatenate([none, *each]).astype(np.int32), axis=0, return_inverse=True)
        # of each text's n-grams, which these are
        self.of_text = np.split(which.ravel(), np.cumsum([len(one) for one in each])[:-1])
        hash_G = hashes(grams_GN.T)
        self._order = np.argsort(hash_G)
        self._grams_GN, self._hash_G = grams_GN[self._order], hash_G[self._order]
        self._there = np.zeros(1 << BITS, bool)
        self._there[hash_G >> np.uint64(64 - BITS)] = True

    def found_in(self, stream: TokenStream) -> np.ndarray:
        """(G,) whether each stands in a document of the stream."""
        found_G, n = np.zeros(len(self._hash_G), bool), self.n
        for start in range(0, stream.size - n + 1, BLOCK):
            ids = stream.gather(np.arange(start, min(start + BLOCK + n - 1, stream.size)))
            hash_I = hashes(ids[k : len(ids) - n + 1 + k] for k in range(n))
            at_I = np.flatnonzero(self._there[hash_I >> np.uint64(64 - BITS)])
            place_I = np.searchsorted(self._hash_G, hash_I[at_I])
            # n-grams with the same hash lie beside one another
            while len(at_I):
                inside_I = place_I < len(self._hash_G)
                at_I, place_I = at_I[inside_I], place_I[inside_I]
                same_I = self._hash_G[place_I] == hash_I[at_I]
                at_I, place_I = at_I[same_I], place_I[same_I]
                tokens_IN = ids[at_I[:, None] + np.arange(n)]
                equal_I = (tokens_IN == self._grams_GN[place_I]).all(1) & _in_one_document(stream, start + at_I, n)
                found_G[place_I[equal_I]] = True
                place_I = place_I + 1
        in_order_G = np.zeros_like(found_G)
        in_order_G[self._order] = found_G
        return in_order_G


def _in_one_document(stream: TokenStream, start_I: np.ndarray, n: int) -> np.ndarray:
    first, last = (np.searchsorted(stream.starts, index, side="right") for index in (start_I, start_I + n - 1))
    return first == last


def overlaps(texts: list[np.ndarray], training: list[TokenStream], n: int) -> list[np.ndarray]:
    """Of each text, for every n-gram, whether it stands in a training document."""
    grams = Grams(texts, n)
    found_G = np.zeros(0, bool)
    for stream in training:
        here_G = grams.found_in(stream)
        found_G = here_G if not len(found_G) else found_G | here_G
    return [found_G[which] for which in grams.of_text]


def covered(overlap: np.ndarray, length: int, n: int) -> float:
    """The share of a text's tokens that are in one of the n-grams that were found."""
    inside = np.zeros(length + 1, int)
    starts = np.flatnonzero(overlap)
    np.add.at(inside, starts, 1)
    np.add.at(inside, starts + n, -1)
    return float((np.cumsum(inside)[:length] > 0).mean()) if length else 0.0


@dataclass(frozen=True)
class Contamination:
    """Texts as `rolling.Perplexity` reads them, or what a template makes of the lines."""

    settings: Settings
    whole: Perplexity

    @staticmethod
    def of(settings: Settings) -> "Contamination":
        """Raises UserError where there is no text."""
        if settings.template is None:
            return Contamination(settings, Perplexity.of(settings))
        records, _ = settings.records()
        texts, places = [filled(settings.template, one) for one in records], [one.where for one in records]
        return Contamination(settings, Perplexity(settings, texts, places))

    def run(self, model: LanguageModel) -> Result:
        n, whole = self.settings.ngram or NGRAM, self.whole
        training, _ = streams(model.path, "contamination", records=True)
        ids = []
        for where, text in zip(whole.places, whole.texts, strict=True):
            with at(where):
                ids.append(model.tokenizer.encode(text))
        found = overlaps(ids, training, n)
        dirty_N, long_N = np.array([one.any() for one in found]), np.array([len(one) > 0 for one in found])
        if not long_N.any():
            raise UserError(
                f"--data {path_text(self.settings.data)}: no text of {n} tokens; expected a smaller --ngram"
            )
        share_N = np.array([covered(one, len(own), n) for one, own in zip(found, ids, strict=True)])
        tokens_N = np.array([len(own) for own in ids])
        scored = whole.scored(model)
        parts = {"all": np.ones(len(ids), bool), "clean": ~dirty_N, "with an overlap": dirty_N}
        rows = [domain_row(whole, scored, name, here_N, "documents") for name, here_N in parts.items() if here_N.any()]
        protocol = {
            "overlap": f"{n} tokens in a row that stand in a document of the training text, compared one by one",
            "training_text": f"{sum(stream.size for stream in training):,} tokens of {path_text(model.path)}",
            "shorter": f"{int((~long_N).sum())} texts have fewer than {n} tokens, and count as clean",
            **whole.result(model, scored).protocol,
        }
        worst = np.argsort(-share_N, kind="stable")[:NAMED]
        named = [{"text": whole.places[i], "overlap": share_N[i]} for i in worst.tolist() if dirty_N[i]]

        def tokens(index_RN: np.ndarray) -> np.ndarray:
            return (share_N * tokens_N)[index_RN].sum(1) / np.maximum(tokens_N[index_RN].sum(1), 1)

        figures = {
            "documents_with_an_overlap": share(dirty_N),
            "tokens_in_an_overlap": figure_of(tokens, len(ids), self.settings.seed),
        }
        return Result("contamination", len(ids), protocol, figures, {"perplexity": rows}, {"overlapping": named})
