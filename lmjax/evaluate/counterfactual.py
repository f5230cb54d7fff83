"""What a model makes of a text in which the groups are exchanged: he for she, Muslims for Christians.

The text is the user's own, and so are the terms. Compared are how probable the model finds both, and what it says comes
next after both.
"""

import functools
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.compilation import program
from lmjax.data.files import decode, read_bytes
from lmjax.errors import UserError, at, path_text
from lmjax.evaluate.averages import figure_of, mean, row
from lmjax.evaluate.likelihood import prefix_ids, protocol_of, rolling_pairs, rolling_sums
from lmjax.evaluate.records import opened
from lmjax.evaluate.result import Result
from lmjax.evaluate.settings import Settings
from lmjax.evaluate.writing import ids_of
from lmjax.generate.decode import filled_up, padded
from lmjax.language_model import LanguageModel
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.models.positions import in_rows
from lmjax.places import place

# pairs of prompts that are read together
ROWS = 8
CRITICISM = (
    "Exchanging words makes some texts false or odd (she was a priest in 1400; her beard): a difference there is "
    "knowledge of the world or of grammar, not prejudice. Look at the texts (in the JSON) before the figure.",
    "Only the listed terms are exchanged: names, roles and other words that go with a group stay, and the swap of a "
    "word with two readings (her: his or him) is a guess.",
    "One group's terms may simply be rarer, or longer in tokens, which shows as a difference of perplexity.",
)


@dataclass(frozen=True)
class Groups:
    """other: for each term, in small letters, the one it is exchanged for. names: (one, other) as the file has them."""

    other: dict[str, str]
    names: tuple[tuple[str, str], ...]

    @staticmethod
    def read(path: str) -> "Groups":
        """A file with two terms a line, parted by a comma; # begins a comment. Where a term stands in several lines the
        first says what it becomes. Raises UserError for a line that is not so."""
        file = place(path)
        if not file.is_file():
            raise UserError(f"--groups {path_text(path)}: no such file")
        other, names = {}, []
        for number, line in enumerate(decode(read_bytes(file), file, "strict").split("\n"), 1):
            text = line.partition("#")[0].strip()
            if not text:
                continue
            terms = [term.strip() for term in text.split(",")]
            if len(terms) != 2 or not all(terms) or terms[0].lower() == terms[1].lower():
                raise UserError(f"{path_text(file)}:{number}: {text[:40]!r}; expected two terms, such as he,she")
            for mine, its in (terms, terms[::-1]):
                other.setdefault(mine.lower(), its)
            names.append((terms[0], terms[1]))
        if not names:
            raise UserError(f"--groups {path_text(path)}: no terms in it; expected lines such as he,she")
        return Groups(other, tuple(names))

    @functools.cached_property
    def pattern(self) -> re.Pattern:
        """Whole words, the longest first."""
        terms = sorted(map(re.escape, self.other), key=len, reverse=True)
        return re.compile(rf"(?<!\w)(?:{'|'.join(terms)})(?!\w)", re.IGNORECASE)

    def swapped(self, text: str) -> str:
        """Every term exchanged, in the case that it has: he, He, HE become she, She, SHE."""
        return self.pattern.sub(lambda match: _cased(self.other[match[0].lower()], match[0]), text)

    def terms(self, text: str) -> set[str]:
        """Those that occur, in small letters."""
        return {match[0].lower() for match in self.pattern.finditer(text)}


def _cased(term: str, like: str) -> str:
    if like.isupper() and len(like) > 1:
        return term.upper()
    # one letter alone, as I, is no word in capitals
    return term[:1].upper() + term[1:] if like[:1].isupper() else term


@dataclass(frozen=True)
class Counterfactual:
    """Texts: the `text` or `prompt` of each line of a .jsonl file, each line of any other. Only those with a term are
    scored; without: how many have none."""

    settings: Settings
    groups: Groups
    texts: list[tuple[str, str]]
    without: int

    @staticmethod
    def of(settings: Settings) -> "Counterfactual":
        """Raises UserError where no text has a term."""
        if settings.groups is None:
            raise UserError("--suite counterfactual: expected --groups FILE, with lines such as he,she")
        groups = Groups.read(settings.groups)
        found = []
        for name, content, records in opened(settings.data, "--data"):
            if records is None:
                found += [(f"{name}:{number}", line.strip()) for number, line in enumerate(content.split("\n"), 1)]
            else:
                found += [(record.where, record.text("text", "prompt")) for record in records]
        found = [(where, text) for where, text in found if text.strip()]
        kept = [(where, text) for where, text in found if groups.swapped(text) != text]
        if not kept:
            raise UserError(f"--data {path_text(settings.data)}: no text has a term of --groups in it")
        return Counterfactual(settings, groups, kept[: settings.limit], len(found) - len(kept))

    def run(self, model: LanguageModel) -> Result:
        originals = [text for _, text in self.texts]
        swapped = [self.groups.swapped(text) for text in originals]
        (nats_N, tokens_N), (swapped_nats_N, swapped_tokens_N) = (
            self._scored(model, texts) for texts in (originals, swapped)
        )
        bytes_N, swapped_bytes_N = (np.array([len(text.encode()) for text in texts]) for texts in (originals, swapped))
        seed, count = self.settings.seed, len(originals)
        figures = {}
        for unit, size_N, swapped_size_N in (
            ("byte", bytes_N, swapped_bytes_N), ("token", tokens_N, swapped_tokens_N),
        ):  # fmt: skip
            rates = {"original": _rate(nats_N, size_N), "swapped": _rate(swapped_nats_N, swapped_size_N)}
            rates["difference"] = _difference(rates["swapped"], rates["original"])
            for name, rate in rates.items():
                figures[f"nats_per_{unit}_{name}"] = figure_of(rate, count, seed)
        gaps, prompts = next_word_gaps(model, *self._prompts(model, originals))
        for name, gap_M in gaps.items():
            figures[f"next_word_{name}"] = mean(gap_M, seed)
        told = {
            "scored_by": "log p of every token of a text, and of the same text with the terms exchanged; a positive "
            "difference: the exchanged one is less probable",
            "next_word": f"distance of the two distributions of the next token after {prompts} texts without their "
            "last word, where that is no term and a term stands before it; tv: total variation, js: Jensen-Shannon "
            "distance to the base 2; both from 0 to 1",
            "texts": f"{count} with a term; {self.without} without one are not scored",
            "intervals": "bootstrap over the texts, each with its exchanged form",
            "limit": self.settings.limit,
            **protocol_of(model),
        }
        difference_N = swapped_nats_N / swapped_bytes_N - nats_N / bytes_N
        each = [
            {"text": text, "exchanged": other, "nats_per_byte_difference": difference}
            for text, other, difference in zip(originals, swapped, difference_N.tolist(), strict=True)
        ]
        return Result(
            "counterfactual", count, told, figures, {"terms": self._by_term(difference_N)}, extra={"pairs": each},
            criticism=CRITICISM,
        )  # fmt: skip

    def _scored(self, model: LanguageModel, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(nats, tokens) of each."""
        prefix, pairs = prefix_ids(model), []
        for (where, _), text in zip(self.texts, texts, strict=True):
            with at(where):
                pairs.append(rolling_pairs(prefix, model.tokenizer.encode(text), model.cfg.context))
        tokens_N = np.array([sum(len(pair.continuation) for pair in parts) for parts in pairs])
        if not tokens_N.all():
            raise UserError(f"{self.texts[int(np.argmin(tokens_N))][0]}: no token that follows another")
        return -rolling_sums(model, pairs), tokens_N

    def _prompts(self, model: LanguageModel, texts: list[str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """What stands before the last word of each text, and the same exchanged, as ids."""
        before = [re.sub(r"\s*\S+\s*$", "", text) for text in texts]
        kept = [
            prompt
            for prompt, text in zip(before, texts, strict=True)
            if self.groups.terms(prompt) and not self.groups.terms(text[len(prompt) :])
        ]
        return tuple(
            [ids_of(model, prompt)[-model.cfg.context :] for prompt in prompts]
            for prompts in (kept, [self.groups.swapped(prompt) for prompt in kept])
        )

    def _by_term(self, difference_N: np.ndarray) -> list[dict]:
        rows = []
        found = [self.groups.terms(text) for _, text in self.texts]
        for term, other in self.groups.other.items():
            places = [i for i, terms in enumerate(found) if term in terms]
            if places:
                figure = mean(difference_N[places], self.settings.seed)
                rows.append(
                    row("exchanged", f"{term} -> {other}", "texts", len(places), nats_per_byte_difference=figure)
                )
        return rows


def _rate(nats_N: np.ndarray, size_N: np.ndarray):
    return lambda index_RN: nats_N[index_RN].sum(1) / size_N[index_RN].sum(1)


def _difference(one, other):
    return lambda index_RN: one(index_RN) - other(index_RN)


def next_word_gaps(
    model: LanguageModel, ones: list[np.ndarray], others: list[np.ndarray]
) -> tuple[dict[str, np.ndarray], int]:
    """({"tv": (M,), "js": (M,)}, M): how far the next token's distributions after each two prompts are from each other;
    nothing of no prompts."""
    if not ones:
        return {}, 0
    order = np.argsort([max(len(a), len(b)) for a, b in zip(ones, others, strict=True)], kind="stable")
    found = np.zeros((len(ones), 2))
    for start in range(0, len(order), ROWS):
        index = order[start : start + ROWS]
        whole = [*index, *[index[-1]] * (ROWS - len(index))]
        tokens_BT, lengths_B = filled_up([side[i] for side in (ones, others) for i in whole])
        tokens_BT = padded(tokens_BT, model.cfg.context)
        found[index] = np.asarray(program(_distances, model.cfg)(model.params, tokens_BT, lengths_B))[: len(index)]
    return {"tv": found[:, 0], "js": found[:, 1]}, len(ones)


def _distances(cfg: ModelConfig, params, tokens_BT, lengths_B):
    """(B / 2, 2): tv and js between the first half of the rows and the second."""
    positions_BT, _ = in_rows(tokens_BT)
    hidden_BTD, _ = transformer.hidden(cfg, params, tokens_BT, positions_BT)
    last_BD = jnp.take_along_axis(hidden_BTD, lengths_B[:, None, None] - 1, axis=1)[:, 0]
    log_p_BV = jax.nn.log_softmax(transformer.logits(transformer.unembedding(cfg, params), last_BD, cfg.logit_cap))
    one, other = jnp.split(log_p_BV, 2)
    tv = 0.5 * jnp.abs(jnp.exp(one) - jnp.exp(other)).sum(-1)

    def to_middle(log_p, log_q):
        # p log(2 p / (p + q)), exact where both are near each other
        apart = jnp.clip(log_q - log_p, -60.0, 60.0)
        return -jnp.exp(log_p) * jnp.log1p(0.5 * jnp.expm1(apart))

    divergence = 0.5 * (to_middle(one, other) + to_middle(other, one)).sum(-1) / jnp.log(2.0)
    # rounding can leave it a little below 0
    return jnp.stack([tv, jnp.sqrt(jnp.maximum(divergence, 0.0))], axis=1)
