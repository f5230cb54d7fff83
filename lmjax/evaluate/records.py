"""The examples of a suite: objects of JSON Lines, each with its file and line for whoever has to mend it."""

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from lmjax.data.files import decode, matching, read_all
from lmjax.data.sources import json_values
from lmjax.errors import UserError, path_text
from lmjax.places import Place, place


@dataclass(frozen=True)
class Record:
    """values: of one line. where: its file and line. file: the name of the file without its suffixes."""

    values: dict
    where: str
    file: str

    def wrong(self, message: str) -> UserError:
        return UserError(f"{self.where}: {message}")

    def field(self, *names: str) -> tuple[str, object]:
        """(name, value) of the one that is there. Raises UserError where none is, or several are."""
        found = [name for name in names if name in self.values]
        wanted = " or ".join(map(repr, names))
        if len(found) > 1:
            raise self.wrong(f"expected {wanted}, not both")
        if not found:
            near = next((m for name in names for m in difflib.get_close_matches(name, self.values, n=1)), None)
            has = ", ".join(map(repr, self.values)) or "none"
            raise self.wrong(f"no field {wanted}; " + (f"is {near!r} meant to be that?" if near else f"it has {has}"))
        return found[0], self.values[found[0]]

    def text(self, *names: str) -> str:
        """Of the one that is there. Raises UserError as `field`, and where it is no text."""
        name, value = self.field(*names)
        return self._checked(name, value)

    def texts(self, *names: str) -> tuple[str, ...]:
        """Of a list of texts that is not empty, or of one text. Raises UserError as `text`."""
        name, value = self.field(*names)
        if isinstance(value, str):
            return (self._checked(name, value),)
        if not isinstance(value, list) or not value:
            raise self.wrong(f"{name!r} is {_short(value)}; expected a list of texts")
        return tuple(self._checked(name, item) for item in value)

    def _checked(self, name: str, value: object) -> str:
        if not isinstance(value, str):
            raise self.wrong(f"{name!r} is {_short(value)}; expected a text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.wrong(f"half a surrogate pair at character {error.start} of {name!r}") from None
        return value


def _short(value: object) -> str:
    return json.dumps(value)[:40]


def read(path: str, option: str) -> list[Record]:
    """The lines of a file, of all that match a glob, or of all *.jsonl of a directory; blank lines are left out.
    option: what the user gave the path with. Raises UserError where there is none, or one is no object of JSON."""
    records = [record for name, content in files(path, option) for record in _lines(name, content)]
    if not records:
        raise UserError(f"{option} {path_text(path)}: no example in it; expected lines of JSON")
    return records


def files(path: str, option: str) -> Iterator[tuple[Place, str]]:
    """(file, its text) of those that a path names."""
    here = place(path)
    if here.is_dir():
        path = f"{path.rstrip('/')}/*.jsonl"
    for _, file, content in read_all(matching(path, option)):
        yield file, decode(content, file, "strict")


def _lines(file: Place, content: str) -> Iterator[Record]:
    for number, values in json_values(content, file):
        where = f"{path_text(file)}:{number}"
        if not isinstance(values, dict):
            raise UserError(f"{where}: {_short(values)}; expected an object of JSON")
        yield Record(values, where, file.name.split(".")[0])
