"""Where documents and records come from. A source gives them in a fixed order, and says which are held out."""

import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from lmjax.data.files import decode, matching, read_all, read_bytes
from lmjax.errors import UserError, path_text
from lmjax.places import Place

Split = Literal["train", "held_out"]


class Document(NamedTuple):
    name: str
    text: str


class Record(NamedTuple):
    """Named fields, of which a task or a suite reads some. name: the same wherever the data lies; where: for
    messages."""

    name: str
    where: str
    fields: dict

    def wrong(self, message: str) -> UserError:
        return UserError(f"{self.where}: {message}")

    def one_of(self, *names: str) -> str:
        """The name of the field that is there. Raises UserError where none is, or several are."""
        found, wanted = [name for name in names if name in self.fields], " or ".join(map(repr, names))
        if not found:
            raise self.wrong(f"no field {wanted}; it has {', '.join(map(repr, self.fields)) or 'none'}")
        if len(found) > 1:
            raise self.wrong(f"expected {wanted}, not both")
        return found[0]

    def field(self, *names: str):
        """Of the one that is there. Raises UserError as `one_of`."""
        return self.fields[self.one_of(*names)]

    def text(self, *names: str) -> str:
        """Raises UserError as `one_of`, and where the field is no text, or none that UTF-8 can say."""
        name = self.one_of(*names)
        return self._checked(name, self.fields[name])

    def texts(self, *names: str) -> tuple[str, ...]:
        """Of a list of texts that is not empty, or of one text. Raises UserError as `text`."""
        name = self.one_of(*names)
        value = self.fields[name]
        if not isinstance(value, str | list) or value == []:
            raise self.wrong(f"{name!r} is {str(value)[:40]!r}; expected a list of texts")
        return tuple(self._checked(name, text) for text in ([value] if isinstance(value, str) else value))

    def _checked(self, name: str, value) -> str:
        if not isinstance(value, str):
            raise self.wrong(f"{name!r} is {str(value)[:40]!r}; expected a text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.wrong(f"half a surrogate pair at character {error.start} of {name!r}") from None
        return value


@dataclass(frozen=True, kw_only=True)
class LastPart:
    """The last `share` of every document's characters is held out, as nanoGPT does with its one text; of records, the
    last ones."""

    share: float = 0.1

    def __post_init__(self):
        _check_share(self.share)

    def split(self, documents: Iterable[Document]) -> Iterator[tuple[Split, Document]]:
        for name, text in documents:
            cut = int(len(text) * (1 - self.share))
            yield "train", Document(name, text[:cut])
            yield "held_out", Document(name, text[cut:])

    def split_records(self, records: Iterable[Record]) -> Iterator[tuple[Split, Record]]:
        records = list(records)
        cut = int(len(records) * (1 - self.share))
        for index, record in enumerate(records):
            yield "train" if index < cut else "held_out", record


@dataclass(frozen=True, kw_only=True)
class WholeDocuments:
    """Whole documents or records are held out: those whose name's hash falls into `share` of all hashes."""

    share: float = 0.1

    def __post_init__(self):
        _check_share(self.share)

    def split(self, documents: Iterable) -> Iterator[tuple[Split, Document]]:
        for document in documents:
            digest = hashlib.sha256(document.name.encode("utf-8", "surrogateescape")).digest()
            held_out = int.from_bytes(digest[:8], "big") < self.share * 2**64
            yield "held_out" if held_out else "train", document

    split_records = split


@dataclass(frozen=True, kw_only=True)
class OtherFiles:
    """Files of their own are held out, read as the source reads those of its own `path`."""

    path: str | tuple[str, ...]


HeldOut = LastPart | WholeDocuments | OtherFiles


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; expected a number between 0 and 1")


class Source:
    """records() gives every Record in a fixed order; a document is the text of one field."""

    field: ClassVar[str] = "text"
    held_out: HeldOut

    def records(self) -> Iterator[Record]:
        raise TypeError("each source says this")

    def check(self) -> None:
        """Raise UserError early where the data cannot be found."""

    def documents(self) -> Iterator[Document]:
        return (Document(record.name, record.text(self.field)) for record in self.records())

    def split(self) -> Iterator[tuple[Split, Document]]:
        """Every document, or part of one, with its split."""
        if not isinstance(self.held_out, OtherFiles):
            return self.held_out.split(self.documents())
        return _with_splits(self.documents(), self.of_held_out().documents())

    def split_records(self) -> Iterator[tuple[Split, Record]]:
        """Every record with its split."""
        if not isinstance(self.held_out, OtherFiles):
            return self.held_out.split_records(self.records())
        return _with_splits(self.records(), self.of_held_out().records())

    def records_of(self, split: Split) -> Iterator[Record]:
        """The records of one split; where that is in files of its own, the others are not read."""
        if isinstance(self.held_out, OtherFiles):
            return (self if split == "train" else self.of_held_out()).records()
        return (record for where, record in self.split_records() if where == split)

    def of_held_out(self) -> "Source":
        """The same of the files of OtherFiles."""
        return replace(self, path=self.held_out.path)


def _with_splits(train: Iterable, held_out: Iterable) -> Iterator[tuple[Split, Any]]:
    yield from (("train", item) for item in train)
    yield from (("held_out", item) for item in held_out)


class FileSource(Source):
    """A source with a `path`."""

    path: str | tuple[str, ...]

    def check(self):
        for path in (self.path, *([self.held_out.path] if isinstance(self.held_out, OtherFiles) else [])):
            matching(path)


@dataclass(frozen=True, kw_only=True)
class TextFiles(FileSource):
    """Each file that a glob (or one of several) matches is a document: UTF-8, plain or .gz. A glob may be a URL.

    errors: "strict" stops at bytes that are not UTF-8 and says where; "replace" reads them as U+FFFD.
    """

    path: str | tuple[str, ...]
    errors: Literal["strict", "replace"] = "strict"
    held_out: HeldOut = LastPart()

    def records(self):
        for name, file, content in read_all(matching(self.path)):
            yield Record(name, path_text(file), {"text": decode(content, file, self.errors), "file": name})


@dataclass(frozen=True, kw_only=True)
class JsonLines(FileSource):
    """Each line of each file is a JSON object, plain or .gz: a record; the text of its `field` is a document. path as
    of TextFiles."""

    path: str | tuple[str, ...]
    field: str = "text"
    held_out: HeldOut = WholeDocuments()

    def records(self):
        for name, file, content in read_all(matching(self.path)):
            yield from json_records(decode(content, file, "strict"), file, name)


@dataclass(frozen=True, kw_only=True)
class Tfds(Source):
    """A prepared TensorFlow dataset, read without TensorFlow (extra [tfds]; format array_record).

    name: as in `tfds.builder`, looked for under data_dir, or where that is None in TFDS's own place. directory: the one
    with features.json, instead of a name. part: such as "train"; with held_out=OtherFiles, its path is another such
    part. field: the feature whose text is a document. Texts, numbers and labels by their names are a record's fields.
    """

    name: str | None = None
    directory: str | None = None
    data_dir: str | None = None
    part: str = "train"
    field: str = "text"
    held_out: HeldOut = WholeDocuments()

    def __post_init__(self):
        if (self.name is None) == (self.directory is None):
            raise ValueError("Tfds wants either name or directory")

    def of_held_out(self):
        return replace(self, part=self.held_out.path)

    def _source(self):
        try:
            import tensorflow_datasets as tfds
        except ImportError:
            raise UserError("data.source=Tfds needs the extra: pip install 'lmjax[tfds]'") from None
        where = self.directory or self.name
        try:
            if self.directory is not None:
                builder = tfds.builder_from_directory(self.directory)
            else:
                builder = tfds.builder(self.name, data_dir=self.data_dir)
            return builder.as_data_source(split=self.part), builder.info.features
        except Exception as error:  # TFDS raises many kinds, long ones
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"data.source: {where} cannot be read as a prepared dataset: {reason}") from None

    def check(self):
        self._source()

    def records(self):
        source, features = self._source()
        for index, example in enumerate(source):
            name = f"{self.part}:{index}"
            fields = {key: _plain(value, features[key], name) for key, value in example.items()}
            yield Record(name, f"{self.directory or self.name} {name}", fields)


def _plain(value, feature, name: str):
    """A feature's value as JSON would have it. Only labels at the top have their names."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if hasattr(feature, "int2str"):
        return feature.int2str(int(value))
    if isinstance(value, bytes):
        return decode(value, name, "strict")
    if isinstance(value, dict):
        return {key: _plain(one, None, name) for key, one in value.items()}
    return [_plain(one, None, name) for one in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, kw_only=True)
class PythonLibrary(Source):
    """The source of the running interpreter's standard library without its tests: text that every machine has. A
    record's `package` is the folder or the module in the library that a file is of. packages: whose files are read;
    None: all."""

    packages: tuple[str, ...] | None = None
    held_out: HeldOut = WholeDocuments(share=0.05)

    def __post_init__(self):
        if isinstance(self.held_out, OtherFiles):
            raise ValueError("PythonLibrary has no other files; expected held_out=WholeDocuments or LastPart")

    def check(self):
        there = {package for _, _, package in self._files()}
        if missing := [package for package in self.packages or () if package not in there]:
            raise UserError(f"data.source.packages: no file of {', '.join(map(repr, missing))} in this interpreter")

    def records(self):
        for name, file, package in self._files():
            text = read_bytes(file).decode("utf-8", errors="replace")
            if text:
                yield Record(name, path_text(file), {"text": text, "file": name, "package": package})

    def _files(self) -> Iterator[tuple[str, Path, str]]:
        """(name, file, package), in the order of their names."""
        root = Path(sysconfig.get_paths()["stdlib"])
        skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
        for name, file in sorted((f.relative_to(root).as_posix(), f) for f in root.rglob("*.py")):
            package = Path(name).parts[0].removesuffix(".py")
            if not skip.intersection(Path(name).parts) and (self.packages is None or package in self.packages):
                yield name, file, package


def json_line(value) -> str:
    """A value as a line of JSON: letters as they are, but half a surrogate pair, which UTF-8 cannot say, escaped."""
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace").decode() + "\n"


def json_objects(content: str, file: Place) -> Iterator[tuple[int, dict]]:
    """(number, object) for every line that is not blank. Raises UserError with the line's number."""
    # line feeds alone: JSON may hold U+2028 and others at which str.splitlines would cut
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path_text(file)}:{number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON: {' '.join(str(error).split())}") from None
        if not isinstance(fields, dict):
            raise UserError(f"{where}: expected an object, not {json.dumps(fields, ensure_ascii=False)[:40]!r}")
        yield number, fields


def json_records(content: str, file: Place, name: str = "") -> Iterator[Record]:
    """A record for every line that is not blank. name: the file's, in theirs. Raises UserError with the line's
    number."""
    for number, fields in json_objects(content, file):
        yield Record(f"{name}:{number}", f"{path_text(file)}:{number}", fields)
