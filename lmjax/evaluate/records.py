"""The files of a suite, and the records in them: lines of JSON."""

from collections.abc import Iterator

from lmjax.data.files import decode, matching, read_all
from lmjax.data.sources import JsonLines, Record, json_records
from lmjax.errors import UserError, path_text
from lmjax.places import Place, place


def read(path: str, option: str) -> list[Record]:
    """The lines of a file, of all that match a glob, or of all *.jsonl of a directory; blank lines are left out.
    option: what the user gave the path with. Raises UserError where there is none, or one is no object of JSON."""
    pattern = _pattern(path)
    matching(pattern, option)
    records = list(JsonLines(path=pattern).records())
    if not records:
        raise UserError(f"{option} {path_text(path)}: no example in it; expected lines of JSON")
    return records


def files(path: str, option: str) -> Iterator[tuple[Place, str]]:
    """(file, its text) of those that a path names."""
    for _, file, content in read_all(matching(_pattern(path), option)):
        yield file, decode(content, file, "strict")


def opened(path: str, option: str) -> Iterator[tuple[str, str, Iterator[Record] | None]]:
    """(its path as a user reads it, its text, the records of a .jsonl file, None of any other) of each file."""
    for file, content in files(path, option):
        yield path_text(file), content, json_records(content, file) if ".jsonl" in file.suffixes else None


def _pattern(path: str) -> str:
    return f"{path.rstrip('/')}/*.jsonl" if place(path).is_dir() else path
