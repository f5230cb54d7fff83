"""What an experiment trains on and is evaluated on, as rows: windows onto a text, or packed examples of its task."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from lmjax.data.batches import Rows
from lmjax.data.mixture import parts, records_of
from lmjax.data.packing import PackedRows
from lmjax.data.sources import Record, Source, json_line
from lmjax.data.store import Store, joined, open_store
from lmjax.data.windows import Windows
from lmjax.errors import UserError
from lmjax.experiment import Experiment
from lmjax.tokenizers import Tokenizer


@dataclass(frozen=True)
class Reading:
    """parts: rows of each source, and its weight. fingerprints: of what each source gives. tokens: of each source, by
    split. kept: where the tokens are kept, for the line in force. records: of a task on records the held-out ones that
    its rows are of; what the task leaves out is not among them."""

    parts: list[tuple[Rows, float]]
    held_out: Rows
    fingerprints: list[str]
    tokens: dict[str, list[int]]
    kept: str
    records: list[Record] = field(default_factory=list)

    @property
    def remembered(self) -> dict:
        """What a run directory remembers of its data."""
        return {"fingerprints": self.fingerprints, "tokens": self.tokens}


def read(experiment: Experiment, tokenizer: Tokenizer, known: list[str] | None) -> Reading:
    """known: the fingerprints, where another process has read the same. Raises UserError where the data cannot be
    read, is too little, or is other than what is known."""
    return (_examples if experiment.task.on_records else _windows)(experiment, tokenizer, known)


def _windows(experiment: Experiment, tokenizer: Tokenizer, known: list[str] | None) -> Reading:
    sources = parts(experiment.data.source)
    names = known or [None] * len(sources)
    stores = [open_store(source, tokenizer, name) for (source, _), name in zip(sources, names, strict=True)]
    streams = [store.stream("train") for store in stores]
    length, ahead = experiment.length, experiment.task.ahead
    kind = {"length": length, "apart": experiment.apart, "ahead": ahead}
    for stream, (source, _) in zip(streams, sources, strict=True):
        if stream.size < length + ahead:
            raise UserError(
                f"data.source {place(source)}: the training text has {stream.size} tokens; a window of "
                f"{length} (model.context, or data.length) needs {length + ahead}"
            )
    held_out = joined([store.stream("held_out") for store in stores])
    if held_out.size < 1 + ahead:
        raise UserError(
            f"data.source {', '.join(place(source) for source, _ in sources)}: nothing to evaluate, the held-out text "
            f"has {held_out.size} token(s); try a larger held_out.share, or --data.source.held_out=LastPart"
        )
    rows = [(Windows(stream, **kind), weight) for stream, (_, weight) in zip(streams, sources, strict=True)]
    fingerprints = [store.fingerprint for store in stores]
    return Reading(rows, Windows(held_out, **kind), fingerprints, _tokens(stores), _kept(stores))


def _tokens(stores: list[Store]) -> dict[str, list[int]]:
    return {split: [store.manifest[split]["tokens"] for store in stores] for split in ("train", "held_out")}


def _kept(stores: list[Store]) -> str:
    made = "reused" if all(store.reused for store in stores) else "made"
    return f"token cache {made} {stores[0].directory}"


def _examples(experiment: Experiment, tokenizer: Tokenizer, known: list[str] | None) -> Reading:
    sources = parts(experiment.data.source)
    rows, held_out, tokens, evaluated_records = [], [], {"train": [], "held_out": []}, []
    encode = experiment.task.encode
    for source, weight in sources:
        by_split = {"train": [], "held_out": []}
        for split, record in source.split_records():
            found = encode(record, tokenizer, experiment.model, experiment.length, experiment.source_length)
            by_split[split] += found
            if found and split == "held_out":
                evaluated_records.append(record)
        if not by_split["train"]:
            raise UserError(f"data.source {place(source)}: nothing to train on")
        rows.append((packed(experiment, by_split["train"], experiment.seed), weight))
        held_out += by_split["held_out"]
        for split, examples in by_split.items():
            tokens[split].append(sum(len(example.tokens) for example in examples))
    if not held_out:
        raise UserError(
            f"data.source {', '.join(place(source) for source, _ in sources)}: nothing to evaluate; try a larger "
            "held_out.share, or held_out=OtherFiles"
        )
    evaluated = packed(experiment, held_out)
    fingerprints = [one.fingerprint() for one in (*(part for part, _ in rows), evaluated)]
    if known not in (None, fingerprints):
        raise UserError("data.source: this process reads other records than process 0")
    count = sum(len(part.tokens) for part, _ in rows)
    filled = np.mean([part.density for part, _ in rows])
    kept = f"{count:,} examples + {len(evaluated.tokens):,} held out, rows of {experiment.length} filled {filled:.0%}"
    return Reading(rows, evaluated, fingerprints, tokens, kept, evaluated_records)


def packed(experiment: Experiment, examples: list, seed: int | None = None) -> PackedRows:
    return PackedRows(examples, length=experiment.length, source_length=experiment.source_length, seed=seed)


def texts(experiment: Experiment, splits: tuple[str, ...]) -> Iterator[str]:
    """What a tokenizer may learn from, of these splits."""
    for source, _ in parts(experiment.data.source):
        if experiment.task.on_records:
            records = (record for split, record in source.split_records() if split in splits)
            yield from (text for record in records for text in experiment.task.texts(record))
        else:
            yield from (document.text for split, document in source.split() if split in splits)


def held_out_texts(experiment: Experiment) -> list[str]:
    """The held-out documents or the texts of the held-out records, read again."""
    return list(texts(experiment, ("held_out",)))


def held_out_lines(experiment: Experiment, reading: Reading) -> str:
    """What is held out as JSON lines, as `evaluate` reads them."""
    if not experiment.task.on_records:
        lines = [{"text": text} for text in held_out_texts(experiment)]
    else:
        lines = [record.fields for record in reading.records]
    return "".join(map(json_line, lines))


def fitted(experiment: Experiment) -> Experiment:
    """The experiment with what its task takes from the training records, such as the names of the labels."""
    if not experiment.task.on_records:
        return experiment
    return experiment.with_task(experiment.task.fitted(records_of(experiment.data.source, "train")))


def place(source: Source) -> str:
    """What a source reads, for messages."""
    return str(getattr(source, "path", None) or getattr(source, "directory", None) or type(source).__name__)
