"""Where documents come from. A source gives (split, name, text) in a fixed order, and says which are held out."""

import glob
import gzip
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from lmjax.errors import UserError, path_text
from lmjax.places import REQUESTS, Place, Remote, in_order, is_url, place

Split = Literal["train", "held_out"]


class Document(NamedTuple):
    name: str
    text: str


@dataclass(frozen=True, kw_only=True)
class LastPart:
    """The last `share` of every document's characters is held out, as nanoGPT does with its one text."""

    share: float = 0.1

    def __post_init__(self):
        _check_share(self.share)

    def split(self, documents: list[Document] | Iterator[Document]) -> Iterator[tuple[Split, Document]]:
        for name, text in documents:
            cut = int(len(text) * (1 - self.share))
            yield "train", Document(name, text[:cut])
            yield "held_out", Document(name, text[cut:])


@dataclass(frozen=True, kw_only=True)
class WholeDocuments:
    """Whole documents are held out: those whose name's hash falls into `share` of all hashes."""

    share: float = 0.1

    def __post_init__(self):
        _check_share(self.share)

    def split(self, documents: Iterator[Document]) -> Iterator[tuple[Split, Document]]:
        for document in documents:
            digest = hashlib.sha256(document.name.encode("utf-8", "surrogateescape")).digest()
            held_out = int.from_bytes(digest[:8], "big") < self.share * 2**64
            yield "held_out" if held_out else "train", document


HeldOut = LastPart | WholeDocuments


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; expected a number between 0 and 1")


class Source:
    """documents() gives every Document in a fixed order; names are stable when the data moves elsewhere."""

    held_out: HeldOut

    def documents(self) -> Iterator[Document]:
        raise TypeError("each source says this")

    def check(self) -> None:
        """Raise UserError early where the data cannot be found."""

    def split(self) -> Iterator[tuple[Split, Document]]:
        return self.held_out.split(self.documents())


@dataclass(frozen=True, kw_only=True)
class TextFiles(Source):
    """Each file that a glob (or one of several) matches is a document: UTF-8, plain or .gz. A glob may be a URL.

    errors: "strict" stops at bytes that are not UTF-8 and says where; "replace" reads them as U+FFFD.
    """

    path: str | tuple[str, ...]
    errors: Literal["strict", "replace"] = "strict"
    held_out: HeldOut = LastPart()

    def check(self):
        matching(self.path)

    def documents(self):
        for name, file, content in read_all(matching(self.path)):
            yield Document(name, decode(content, file, self.errors))


@dataclass(frozen=True, kw_only=True)
class JsonLines(Source):
    """Each line of each file is a JSON object, plain or .gz; the text of its `field` is a document. path as of
    TextFiles."""

    path: str | tuple[str, ...]
    field: str = "text"
    held_out: HeldOut = WholeDocuments()

    def check(self):
        matching(self.path)

    def documents(self):
        for name, file, content in read_all(matching(self.path)):
            for number, text in json_lines(decode(content, file, "strict"), self.field, file):
                yield Document(f"{name}:{number}", text)


@dataclass(frozen=True, kw_only=True)
class Tfds(Source):
    """A prepared TensorFlow dataset, read without TensorFlow (extra [tfds]; format array_record).

    name: as in `tfds.builder`, looked for under data_dir, or where that is None in TFDS's own place. directory: the one
    with features.json, instead of a name. part: such as "train". feature: the one whose text is a document.
    """

    name: str | None = None
    directory: str | None = None
    data_dir: str | None = None
    part: str = "train"
    feature: str = "text"
    held_out: HeldOut = WholeDocuments()

    def __post_init__(self):
        if (self.name is None) == (self.directory is None):
            raise ValueError("Tfds wants either name or directory")

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
            if self.feature not in builder.info.features:
                raise UserError(
                    f"data.source.feature: {where} has {sorted(builder.info.features)}, not {self.feature!r}"
                )
            return builder.as_data_source(split=self.part)
        except UserError:
            raise
        except Exception as error:  # TFDS raises many kinds, long ones
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"data.source: {where} cannot be read as a prepared dataset: {reason}") from None

    def check(self):
        self._source()

    def documents(self):
        for index, example in enumerate(self._source()):
            raw = example[self.feature]
            name = f"{self.part}:{index}"
            yield Document(name, decode(raw, name, "strict") if isinstance(raw, bytes) else str(raw))


@dataclass(frozen=True, kw_only=True)
class PythonLibrary(Source):
    """The source of the running interpreter's standard library without its tests: text that every machine has."""

    held_out: HeldOut = WholeDocuments(share=0.05)

    def documents(self):
        root = Path(sysconfig.get_paths()["stdlib"])
        skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
        found = sorted((f.relative_to(root).as_posix(), f) for f in root.rglob("*.py"))
        for name, file in found:
            if not skip.intersection(Path(name).parts):
                text = read_bytes(file).decode("utf-8", errors="replace")
                if text:
                    yield Document(name, text)


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A part of a mixture; a weight counts relative to the others."""

    source: TextFiles | JsonLines | Tfds | PythonLibrary
    weight: float = 1.0

    def __post_init__(self):
        if self.weight <= 0:
            raise ValueError(f"weight is {self.weight}; expected a positive number")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Windows from several sources, in proportion to their weights, whatever their sizes; each repeats on its own."""

    parts: tuple[Weighted, ...]

    def __post_init__(self):
        if not self.parts:
            raise ValueError("a mixture needs parts")


AnySource = TextFiles | JsonLines | Tfds | PythonLibrary | Mixture


def parts(source: AnySource) -> list[tuple[Source, float]]:
    """The plain sources of any source, with their weights."""
    if isinstance(source, Mixture):
        return [(part.source, part.weight) for part in source.parts]
    return [(source, 1.0)]


def matching(patterns: str | tuple[str, ...]) -> list[tuple[str, Place]]:
    """(name, file) for all that the globs match, sorted; names are relative to the folder that all share."""
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    files = set()
    for pattern in patterns:
        here = _remote_files(pattern) if is_url(pattern) else _local_files(pattern)
        if not here:
            raise UserError(f"data.source.path: {path_text(pattern)}: no such file")
        files.update(here)
    # of a URL too, so that a text is the same wherever it lies
    ordered = sorted(files, key=lambda file: PurePosixPath(str(file)))
    whole = [PurePosixPath("/", str(file.absolute())) for file in ordered]
    shared = whole[0].parent
    while not all(file.parent.is_relative_to(shared) for file in whole):
        shared = shared.parent
    return [(name.relative_to(shared).as_posix(), file) for name, file in zip(whole, ordered, strict=True)]


def _local_files(pattern: str) -> list[Path]:
    # a file whose name happens to hold brackets is meant as it stands
    here = [pattern] if Path(pattern).is_file() else glob.glob(str(Path(pattern).expanduser()), recursive=True)
    return [Path(f) for f in here if Path(f).is_file()]


def _remote_files(pattern: str) -> list[Place]:
    found = place(pattern)
    if isinstance(found, Path):  # file://
        return _local_files(str(found))
    return [found] if found.is_file() else found.matching()


def read_all(files: list[tuple[str, Place]]) -> Iterator[tuple[str, Place, bytes]]:
    """(name, file, content) of each, one after another; of remote ones the next are asked for meanwhile."""
    places = [file for _, file in files]
    remote = any(isinstance(file, Remote) for file in places)
    contents = in_order(read_bytes, places, REQUESTS, REQUESTS) if remote else map(read_bytes, places)
    for (name, file), content in zip(files, contents, strict=True):
        yield name, file, content


def read_bytes(file: Place) -> bytes:
    """The file's content, unzipped where its name ends in .gz."""
    try:
        if isinstance(file, Remote):
            content = file.read_bytes()
            return gzip.decompress(content) if file.suffix == ".gz" else content
        with gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb") as stream:
            return stream.read()
    except (OSError, EOFError) as error:  # BadGzipFile is an OSError
        raise UserError(f"{path_text(file)}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def decode(content: bytes, where, errors: Literal["strict", "replace"]) -> str:
    try:
        return content.decode("utf-8", errors=errors)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path_text(where)}: not UTF-8 at byte {error.start} (0x{content[error.start]:02x}); "
            "TextFiles with errors=replace reads such bytes as U+FFFD"
        ) from None


def json_lines(content: str, field: str, file: Place) -> Iterator[tuple[int, str]]:
    """(number, text of one field) for every line that is not blank. Raises UserError with the line's number."""
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield number, json_field(line, field, f"{path_text(file)}:{number}")


def json_field(line: str, field: str, where: str) -> str:
    """The text of one field of one JSON line. Raises UserError with the line's number."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}") from None
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        raise UserError(f"{where}: expected an object with a text in {field!r}")
    try:
        record[field].encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: half a surrogate pair at character {error.start} of {field!r}") from None
    return record[field]
