"""Word-association tests: whether words of one kind lie nearer to one attribute than words of another kind do.

WEAT (Caliskan et al., arXiv:1608.07187) on the vectors of words; SEAT (May et al., arXiv:1903.10561) on those of
sentences: s(w, A, B) is the mean cosine of w with A minus that with B, the effect size d the difference of its means
over X and Y in standard deviations over both (n - 1, as SEAT's code), p the share of the ways to part X and Y into two
sets of these sizes that have a difference at least as large.
"""

import itertools
import json
import math
from dataclasses import dataclass
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np

from lmjax.compilation import program
from lmjax.data.sources import Record
from lmjax.errors import UserError, at, path_text
from lmjax.evaluate.averages import figure_of
from lmjax.evaluate.records import files
from lmjax.evaluate.result import Figure, Result
from lmjax.evaluate.settings import Settings
from lmjax.generate.decode import filled_up, padded
from lmjax.language_model import LanguageModel
from lmjax.masked_model import MaskedModel
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.models.packed import Packed
from lmjax.models.positions import in_rows
from lmjax.tasks.text_metrics import RESAMPLES, Interval
from lmjax.tokenizers.sides import prompt_ids, source_ids

Vectors = Literal["embeddings", "mean", "first", "last"]
# what each set is called in WEAT's paper, and in SEAT's files
SETS = {"X": "targ1", "Y": "targ2", "A": "attr1", "B": "attr2"}
# up to so many partitions all are looked at, else so many that are drawn
PARTITIONS = 100_000
ROWS = 32
CRITICISM = (
    "A test speaks of the words in its four sets alone: other words for the same groups often give another size, or "
    "sign (Ethayarajh et al., 2019, aclanthology.org/P19-1166), and rare words lie near one another for want of data.",
    "Vectors of sentences depend on the template and on which token is taken; what is found, or not found, there often "
    "does not agree with what a model does (May et al., 2019; Goldfarb-Tarrant et al., 2021, arXiv:2012.15859).",
    "Cosines of a Transformer's vectors are ruled by a few large dimensions (Timkey and van Schijndel, 2021, "
    "arXiv:2109.04404).",
)


@dataclass(frozen=True)
class Test:
    """sets: the texts of X, Y, A and B, words or sentences."""

    name: str
    where: str
    sets: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class WordAssociation:
    """A JSON file with a test, {"X": [words], "Y": ..., "A": ..., "B": ...}, or an object of them by name; SEAT's own
    files too. "templates", as ["This is {}."], makes sentences of every word."""

    settings: Settings
    vectors: Vectors
    tests: list[Test]

    @staticmethod
    def of(settings: Settings) -> "WordAssociation":
        """Raises UserError for a file that is not so."""
        vectors = settings.vectors or "embeddings"
        if vectors not in get_args(Vectors):
            raise UserError(f"--vectors {vectors}: expected one of {', '.join(get_args(Vectors))}")
        tests = []
        for file, content in files(settings.data, "--data"):
            name = path_text(file)
            try:
                data = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{name}: not JSON: {' '.join(str(error).split())[:80]}") from None
            if not isinstance(data, dict) or not data:
                raise UserError(f"{name}: expected an object of tests, or a test with the sets X, Y, A and B")
            one = {"X", "targ1"}.intersection(data)
            named = {file.stem: data} if one else data
            tests += [_test(title, f"{name}: {title}", fields) for title, fields in named.items()]
        return WordAssociation(settings, vectors, tests[: settings.limit])

    def run(self, model: LanguageModel | MaskedModel) -> Result:
        rows = []
        for test in self.tests:
            with at(test.where):
                vectors = {name: vectors_of(model, texts, self.vectors) for name, texts in test.sets.items()}
                rows.append(_row(test.name, vectors, self.settings.seed))
        how = {
            "embeddings": "a word's vector is the mean of the input embeddings of its tokens",
            "mean": "a text's vector is the mean of the last layer's over its tokens",
            "first": "a text's vector is the last layer's of the first token, with BOS where there is one",
            "last": "a text's vector is the last layer's of the last token (of a masked model EOS, where there is one)",
        }[self.vectors]
        told = {
            "scored_by": how,
            "d": "difference of the mean associations of X and Y in standard deviations (n - 1): from -2 to 2, 0 is "
            "none",
            "p": f"one-sided, over all partitions of X and Y, or {PARTITIONS:,} of them; a tie counts as larger",
            "intervals": "of d: bootstrap over the words of X and of Y, each set for itself",
            "limit": self.settings.limit,
            "dtype": model.cfg.dtype,
        }
        sizes = np.array([abs(row["d"]) for row in rows])
        overall = figure_of(lambda index_RN: sizes[index_RN].mean(1), len(sizes), self.settings.seed)
        return Result(
            "word-association", len(rows), told, {"mean_absolute_d": overall}, {"tests": rows}, criticism=CRITICISM
        )


def _row(name: str, vectors: dict[str, np.ndarray], seed: int) -> dict:
    s_X, s_Y = (association(vectors[kind], vectors["A"], vectors["B"]) for kind in "XY")
    d = effect_size(s_X, s_Y, seed)
    return {
        "test": name, "words": " + ".join(str(len(vectors[kind])) for kind in SETS), "d": d.value,
        "d_interval_95": d.interval, "p": p_value(s_X, s_Y, seed),
    }  # fmt: skip


def association(words_WD: np.ndarray, a_AD: np.ndarray, b_BD: np.ndarray) -> np.ndarray:
    """(W,): the mean cosine with A minus that with B."""
    words_WD, a_AD, b_BD = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (words_WD, a_AD, b_BD))
    return (words_WD @ a_AD.T).mean(1) - (words_WD @ b_BD.T).mean(1)


def effect_size(s_X: np.ndarray, s_Y: np.ndarray, seed: int = 0) -> Figure:
    """d, with an interval by bootstrap. Raises UserError where all associations are equal."""
    both = np.concatenate([s_X, s_Y])
    if not np.ptp(both):
        raise UserError("all words of X and Y are associated with A and B alike; there is no effect size")

    # each set is drawn for itself, with its own number of words
    rng = np.random.default_rng(seed)
    drawn_X, drawn_Y = (s[rng.integers(0, len(s), (RESAMPLES, len(s)))] for s in (s_X, s_Y))
    spread_R = np.concatenate([drawn_X, drawn_Y], axis=1).std(axis=1, ddof=1)
    sizes_R = (drawn_X.mean(1) - drawn_Y.mean(1)) / np.maximum(spread_R, 1e-12)
    low, high = np.quantile(sizes_R, [0.025, 0.975])
    value = (s_X.mean() - s_Y.mean()) / both.std(ddof=1)
    return Figure(float(value), float(sizes_R.std(ddof=1)), Interval(float(low), float(high)))


def p_value(s_X: np.ndarray, s_Y: np.ndarray, seed: int = 0) -> float:
    """The share of partitions whose difference of sums is at least that of X and Y; X itself is one of them."""
    both, n = np.concatenate([s_X, s_Y]), len(s_X)
    # the sum over Y follows from that over X
    least = s_X.sum() - 1e-9 * np.abs(both).sum()
    if math.comb(len(both), n) <= PARTITIONS:
        sums = [both[list(places)].sum() for places in itertools.combinations(range(len(both)), n)]
        return float(np.mean(np.array(sums) >= least))
    rng, at_least, left = np.random.default_rng(seed), 1, PARTITIONS - 1
    while left:
        drawn = rng.permuted(np.tile(both, (min(left, 10_000), 1)), axis=1)[:, :n].sum(1)
        at_least += int((drawn >= least).sum())
        left -= len(drawn)
    # one observation is X itself, so that p is never 0
    return at_least / PARTITIONS


def vectors_of(model: LanguageModel | MaskedModel, texts: tuple[str, ...], kind: Vectors) -> np.ndarray:
    """(W, D) in float64, one for each text. Raises UserError where a text has no token or too many."""
    if kind == "embeddings":
        table_VD = model.params["embedding"]
        if isinstance(table_VD, Packed):
            raise UserError("--vectors embeddings: reads the embeddings in float32; expected --weights float32")
        ids = [model.tokenizer.encode(text) for text in texts]
        _check(ids, texts, model.cfg)
        return np.stack([np.asarray(table_VD[one], np.float64).mean(0) for one in ids])
    encode = prompt_ids if model.cfg.causal else source_ids
    ids = [encode(text, model.tokenizer) for text in texts]
    _check(ids, texts, model.cfg)
    order, found = np.argsort([len(one) for one in ids], kind="stable"), np.zeros((len(ids), model.cfg.width))
    for start in range(0, len(order), ROWS):
        index = order[start : start + ROWS]
        tokens_BT, lengths_B = filled_up([ids[i] for i in index])
        B = ROWS - len(index)
        tokens_BT = np.pad(padded(tokens_BT, model.cfg.context, shortest=ROWS), ((0, B), (0, 0)))
        vectors_BD = program(_vectors, model.cfg, kind)(
            model.params, tokens_BT, np.pad(lengths_B, (0, B), constant_values=1)
        )
        found[index] = np.asarray(vectors_BD, np.float64)[: len(index)]
    return found


def _check(ids: list[np.ndarray], texts: tuple[str, ...], cfg: ModelConfig) -> None:
    for one, text in zip(ids, texts, strict=True):
        if not 1 <= len(one) <= cfg.context:
            raise UserError(f"{text[:40]!r} has {len(one)} tokens; expected 1 to {cfg.context}, the model's context")


def _vectors(cfg: ModelConfig, kind: Vectors, params, tokens_BT, lengths_B):
    """(B, D)"""
    positions_BT, segments_BT = in_rows(tokens_BT, lengths_B)
    hidden_BTD, _ = transformer.hidden(cfg, params, tokens_BT, positions_BT, None if cfg.causal else segments_BT)
    hidden_BTD = hidden_BTD.astype(jnp.float32)
    if kind == "mean":
        return jnp.sum(hidden_BTD * segments_BT[..., None], axis=1) / lengths_B[:, None]
    at_B = jnp.zeros_like(lengths_B) if kind == "first" else lengths_B - 1
    return jnp.take_along_axis(hidden_BTD, at_B[:, None, None], axis=1)[:, 0]


def _test(name: str, where: str, fields) -> Test:
    record = Record(name, where, fields if isinstance(fields, dict) else {})
    templates = record.texts("templates") if "templates" in record.fields else ("{}",)
    if not all("{}" in template for template in templates):
        raise record.wrong("a template without {}, where the word stands")
    sets = {}
    for short, long in SETS.items():
        field = record.one_of(short, long)
        value = record.fields[field]
        # SEAT's files have {"category": name, "examples": [texts]}
        examples = value["examples"] if isinstance(value, dict) and "examples" in value else value
        words = Record(name, where, {field: examples}).texts(field)
        if len(words) < 2 or not all(words):
            raise record.wrong(f"{field!r} has {len(words)} word(s); expected two or more, none of them empty")
        sets[short] = tuple(template.replace("{}", word) for word in words for template in templates)
    return Test(name, where, sets)
