"""The files that a source reads: found by globs or URLs, unzipped, decoded."""

import glob
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from lmjax.errors import UserError, path_text
from lmjax.places import REQUESTS, Place, Remote, in_order, is_url, place


def matching(patterns: str | tuple[str, ...], option: str = "data.source.path:") -> list[tuple[str, Place]]:
    """(name, file) for all that the globs match, sorted; names are relative to the folder that all share. option: what
    the user gave them with. Raises UserError where one matches no file."""
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    files = set()
    for pattern in patterns:
        here = _remote_files(pattern) if is_url(pattern) else _local_files(pattern)
        if not here:
            what = "is a directory; expected a file, or a glob" if place(pattern).is_dir() else "no such file"
            raise UserError(f"{option} {path_text(pattern)}: {what}")
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
    except (OSError, EOFError, zlib.error) as error:  # BadGzipFile is an OSError
        raise UserError(f"{path_text(file)}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def decode(content: bytes, where, errors: Literal["strict", "replace"]) -> str:
    """The text, without the mark that some editors put at the beginning of a file. Raises UserError where it is not
    UTF-8."""
    try:
        return content.decode("utf-8", errors=errors).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path_text(where)}: not UTF-8 at byte {error.start} (0x{content[error.start]:02x}); "
            "TextFiles with errors=replace reads such bytes as U+FFFD"
        ) from None
