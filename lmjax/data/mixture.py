"""Any source of an experiment: one, or a mixture of several."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from lmjax.data.records import Lines, Parallel, Squad, Table
from lmjax.data.sources import FileSource, JsonLines, PythonLibrary, Record, Source, Split, TextFiles, Tfds
from lmjax.errors import UserError, path_text

OneSource = TextFiles | JsonLines | Tfds | PythonLibrary | Table | Parallel | Squad


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A part of a mixture; a weight counts relative to the others."""

    source: OneSource
    weight: float = 1.0

    def __post_init__(self):
        if self.weight <= 0:
            raise ValueError(f"weight is {self.weight}; expected a positive number")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Rows from several sources, in proportion to their weights, whatever their sizes; each repeats on its own."""

    parts: tuple[Weighted, ...]

    def __post_init__(self):
        if not self.parts:
            raise ValueError("a mixture needs parts")


AnySource = OneSource | Mixture


def parts(source: AnySource) -> list[tuple[Source, float]]:
    """The plain sources of any source, with their weights."""
    if isinstance(source, Mixture):
        return [(part.source, part.weight) for part in source.parts]
    return [(source, 1.0)]


def records_of(source: AnySource, split: Split) -> Iterator[Record]:
    """The records of one split, of all plain sources one after another."""
    return (record for part, _ in parts(source) for record in part.records_of(split))


def read_as(source: AnySource, path: str) -> Source:
    """A file with records like the source's: JSON Lines where its name says so, a table where that is not how the
    source reads files."""
    (first, _), *_ = parts(source)
    if ".jsonl" in PurePosixPath(path).suffixes:
        return JsonLines(path=path)
    if isinstance(first, Parallel) and path.count(",") == 1:
        return replace(first, path=tuple(path.split(",")))
    if isinstance(first, Parallel) or not isinstance(first, FileSource):
        return Table(path=path)
    return replace(first, path=path)


def read_for(task, source: AnySource, path: str) -> Source:
    """As `read_as`; of a file that is neither JSON nor a table each line is the one field that the task reads."""
    (first, _), *_ = parts(source)
    if {".jsonl", ".tsv", ".csv"}.intersection(PurePosixPath(path).suffixes) or isinstance(first, Squad):
        return read_as(source, path)
    if len(task.fields) != 1:
        names = ", ".join(map(repr, task.fields))
        raise UserError(f"{path_text(path)}: a line has one text, and the model reads {names}; expected .jsonl or .tsv")
    return Lines(path=path, field=task.fields[0])
