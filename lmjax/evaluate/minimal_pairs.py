"""Minimal pairs: how often the acceptable sentence is the more probable one (BLiMP, arXiv:1912.00582)."""

from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np

from lmjax.data.sources import Record
from lmjax.errors import at
from lmjax.evaluate import calibration
from lmjax.evaluate.calibration import Answered, Judged, Scaling
from lmjax.evaluate.likelihood import encode_pair, log_likelihoods, protocol_of
from lmjax.evaluate.result import Figure, Result, share
from lmjax.evaluate.settings import Settings
from lmjax.language_model import LanguageModel


@dataclass(frozen=True)
class Sentences:
    """paradigm: the line's UID, or its file. term, field: its linguistics_term and field, where it has them."""

    where: str
    good: str
    bad: str
    paradigm: str
    term: str | None
    field: str | None


@dataclass(frozen=True)
class MinimalPairs:
    """BLiMP's lines: `sentence_good`, `sentence_bad`, and `UID`, `linguistics_term`, `field` where they are there. The
    limit holds for each paradigm."""

    settings: Settings
    pairs: list[Sentences]
    fit_pairs: list[Sentences] = field(default_factory=list)
    scaling: Scaling = Scaling()

    @staticmethod
    def of(settings: Settings) -> "MinimalPairs":
        """Raises UserError for lines that are not so."""
        records, _ = Settings(data=settings.data).records()
        pairs = _pairs(records, settings.limit)
        kinds = [pair.paradigm for pair in pairs]
        return MinimalPairs(settings, *calibration.parted(settings, pairs, _pairs, kinds))

    def run(self, model: LanguageModel) -> Result:
        encoded = []
        for pair in (*self.pairs, *self.fit_pairs):
            with at(pair.where):
                encoded += [encode_pair(model, "", text) for text in (pair.bad, pair.good)]
        found = log_likelihoods(model, encoded)
        log_p_N2, N = found.sums.reshape(-1, 2), len(self.pairs)
        right = log_p_N2[:N, 1] > log_p_N2[:N, 0]
        paradigms = {}
        for pair, is_right in zip(self.pairs, right.tolist(), strict=True):
            paradigms.setdefault(pair.paradigm, []).append((pair, is_right))
        accuracies = {name: share([r for _, r in members]) for name, members in paradigms.items()}
        overall = _mean(list(accuracies.values()))
        rows = [
            {
                "paradigm": name, "pairs": len(paradigms[name]), "accuracy": figure.value, "stderr": figure.stderr,
                "interval_95": figure.interval,
            }
            for name, figure in accuracies.items()
        ]  # fmt: skip
        tables = {"paradigms": rows}
        for kind in ("term", "field"):
            groups = {}
            for name, members in paradigms.items():
                groups.setdefault(getattr(members[0][0], kind), []).append(accuracies[name])
            if set(groups) != {None}:
                tables[f"{kind}s"] = [
                    {kind: name, "paradigms": len(each), "accuracy": _mean(each).value, "stderr": _mean(each).stderr}
                    for name, each in groups.items()
                ]
        protocol = {
            "scored_by": "log p of each whole sentence, without normalisation; a tie counts as wrong",
            "overall": "mean over the paradigms",
            "limit_of_a_paradigm": self.settings.limit,
            **protocol_of(model, found.cut),
        }
        result = Result("minimal-pairs", N, protocol, {"accuracy": overall}, tables)
        return self._calibrated(log_p_N2).beside(result, "the two sentences, of all pairs alike")

    def _calibrated(self, log_p_N2: np.ndarray) -> Judged:
        """Calibration of the choice between the two. log_p_N2: of (bad, good) of the pairs, then of those to fit on. Of
        equals the bad one is chosen."""
        parts, examples = np.split(log_p_N2, [len(self.pairs)]), [[pair.good, pair.bad] for pair in self.fit_pairs]
        reported, fit_on = (Answered({"sentences": part}, np.ones(len(part), int)) for part in parts)
        return calibration.judge(
            reported, fit_on, examples, {"suite": "minimal-pairs"}, self.scaling, self.settings.data, self.settings.seed
        )


def _pairs(records: list[Record], limit: int | None = None) -> list[Sentences]:
    """limit: of each paradigm. Raises UserError."""
    pairs, seen = [], {}
    for record in records:
        kinds = {name: record.text(name) for name in ("UID", "linguistics_term", "field") if name in record.fields}
        paradigm = kinds.get("UID", _file(record))
        seen[paradigm] = seen.get(paradigm, 0) + 1
        if limit is None or seen[paradigm] <= limit:
            good, bad = record.text("sentence_good"), record.text("sentence_bad")
            more = (kinds.get("linguistics_term"), kinds.get("field"))
            pairs.append(Sentences(record.where, good, bad, paradigm, *more))
    return pairs


def _file(record: Record) -> str:
    """The name of the record's file, without its suffixes."""
    return PurePosixPath(record.name.rpartition(":")[0]).name.split(".")[0]


def _mean(accuracies: list[Figure]) -> Figure:
    """Over paradigms that are what they are: its error is that of the pairs drawn in each."""
    values, errors = [figure.value for figure in accuracies], [figure.stderr for figure in accuracies]
    known = None not in errors
    return Figure(float(np.mean(values)), float(np.linalg.norm(errors)) / len(errors) if known else None)
