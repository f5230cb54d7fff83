"""Sources of records: tables, parallel texts, questions about paragraphs."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from lmjax.data.files import decode, matching, read_all, read_bytes
from lmjax.data.sources import FileSource, HeldOut, OtherFiles, Record, WholeDocuments
from lmjax.errors import UserError, path_text

# characters; the csv module's own limit is 131,072
FIELD_LIMIT = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Table(FileSource):
    """Rows of .tsv, .csv (or .gz of these) files. columns: their names; None: each file's first line has them.
    delimiter: "auto" takes a comma for .csv and a tab for the rest. Only a comma's fields may stand in quotes, as RFC
    4180 has them. field: the column whose text is a document."""

    path: str | tuple[str, ...]
    columns: tuple[str, ...] | None = None
    delimiter: Literal["auto", "tab", "comma"] = "auto"
    field: str = "text"
    held_out: HeldOut = WholeDocuments()

    def __post_init__(self):
        if self.columns is not None and len(set(self.columns)) != len(self.columns):
            raise ValueError(f"columns are {self.columns}; expected different names")

    def records(self):
        for name, file, content in read_all(matching(self.path)):
            rows = self._rows(decode(content, file, "strict"), file)
            columns = self.columns
            for number, cells in rows:
                if columns is None:
                    columns = tuple(cells)
                    if len(set(columns)) != len(columns):
                        names = ", ".join(columns)
                        raise UserError(
                            f"{path_text(file)}:{number}: the columns are {names}; expected different names"
                        )
                    continue
                if tuple(cells) == self.columns:
                    raise UserError(
                        f"{path_text(file)}:{number}: the names of the columns; expected data.source.columns=none, "
                        "as the file has them"
                    )
                if len(cells) != len(columns):
                    raise UserError(f"{path_text(file)}:{number}: {len(cells)} fields; expected {', '.join(columns)}")
                fields = dict(zip(columns, cells, strict=True))
                yield Record(f"{name}:{number}", f"{path_text(file)}:{number}", fields)

    def _rows(self, content: str, file) -> Iterator[tuple[int, list[str]]]:
        """(number of its first line, cells) of every row that is not blank."""
        comma = self.delimiter == "comma" or (
            self.delimiter == "auto" and ".csv" in PurePosixPath(str(file)).suffixes[-2:]
        )
        if not comma:
            for number, line in enumerate(content.split("\n"), 1):
                # a row of tabs alone has fields, empty ones
                if line.strip(" \r"):
                    yield number, line.removesuffix("\r").split("\t")
            return
        csv.field_size_limit(FIELD_LIMIT)
        reader, number = csv.reader(io.StringIO(content, newline=""), strict=True), 1
        try:
            for cells in reader:
                if cells and not (len(cells) == 1 and cells[0].isspace()):
                    yield number, cells
                number = reader.line_num + 1
        except csv.Error as error:
            raise UserError(f"{path_text(file)}:{number}: not a row of a .csv file: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Parallel(FileSource):
    """Two files, or globs, of as many lines: line n of the second is the translation of line n of the first. A record
    has `source` and `target`."""

    path: tuple[str, str]
    held_out: HeldOut = WholeDocuments()

    def __post_init__(self):
        if isinstance(self.held_out, OtherFiles) and (
            isinstance(self.held_out.path, str) or len(self.held_out.path) != 2
        ):
            raise ValueError("held_out.path of Parallel is not a pair of files")

    def records(self):
        sources, targets = (matching(side) for side in self.path)
        if len(sources) != len(targets):
            raise UserError(f"data.source.path: {self.path[0]}: {len(sources)} files, {self.path[1]}: {len(targets)}")
        for (name, source), (_, target) in zip(sources, targets, strict=True):
            ours, theirs = _lines(source), _lines(target)
            if len(ours) != len(theirs):
                raise UserError(
                    f"{path_text(source)} has {len(ours)} lines and {path_text(target)} {len(theirs)}; expected as many"
                )
            for number, (one, other) in enumerate(zip(ours, theirs, strict=True), 1):
                where = f"{path_text(source)}:{number}"
                yield Record(f"{name}:{number}", where, {"source": one, "target": other})


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Every line of a text file, blank ones too, as a record of one field."""

    path: str
    field: str

    def records(self) -> Iterator[Record]:
        """In their order. Raises UserError where the file cannot be read."""
        for name, file in matching(self.path):
            for number, line in enumerate(_lines(file), 1):
                yield Record(f"{name}:{number}", f"{path_text(file)}:{number}", {self.field: line})


def _lines(file) -> list[str]:
    content = decode(read_bytes(file), file, "strict")
    return [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")] if content else []


@dataclass(frozen=True, kw_only=True)
class Squad(FileSource):
    """Questions about paragraphs in the format of SQuAD 1.1 and 2.0 (arXiv:1606.05250): a record for each question
    with `id`, `context`, `question` and `answers`, a list of {"text", "answer_start"}. What is held out by names goes
    by paragraphs."""

    path: str | tuple[str, ...]
    held_out: HeldOut = WholeDocuments()

    def records(self):
        for name, file, content in read_all(matching(self.path)):
            try:
                parsed = json.loads(decode(content, file, "strict"))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path_text(file)}: not in SQuAD's format: {' '.join(str(error).split())}") from None
            for a, article in _each(parsed, "data", path_text(file)):
                for p, paragraph in _each(article, "paragraphs", f"{path_text(file)}: article {a}"):
                    where = f"{path_text(file)}: article {a}, paragraph {p}"
                    context = _needed(paragraph, "context", where)
                    for q, question in _each(paragraph, "qas", where):
                        at = f"{where}, question {q}"
                        fields = {
                            "id": str(_needed(question, "id", at)), "context": context,
                            "question": _needed(question, "question", at), "answers": question.get("answers", []),
                        }  # fmt: skip
                        yield Record(f"{name}:{a}:{p}", f"{path_text(file)}: question {fields['id']}", fields)


def _needed(parent, key: str, where: str):
    """Raises UserError where it is not there."""
    if not isinstance(parent, dict) or key not in parent:
        raise UserError(f"{where}: not in SQuAD's format: no field {key!r}")
    return parent[key]


def _each(parent, key: str, where: str) -> Iterator[tuple[int, dict]]:
    """The members of a list, with their numbers from 0."""
    found = _needed(parent, key, where)
    if not isinstance(found, list):
        raise UserError(f"{where}: not in SQuAD's format: {key!r} is {str(found)[:40]!r}; expected a list")
    return enumerate(found)
