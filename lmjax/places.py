"""Where things lie: a path of this machine, or a URL of any file system that fsspec knows (gs://, s3://, sftp://).

A `Remote` has those operations of pathlib's that are needed here, under the same names, so that what only reads takes
either. Object stores have no rename, no append and no locks, so it has none of these. What goes wrong with one is one
UserError that names the URL; only that something is missing is a FileNotFoundError, as of a path.
"""

import errno
import hashlib
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from lmjax.errors import UserError, path_text

# requests to a remote file system under way at one time: each waits for the network, none for a core
REQUESTS = 16
BLOCK = 1 << 24
# there a folder is only the beginning of a name; gcsfs would take its making for that of a bucket
WITHOUT_FOLDERS = {"gs", "s3", "s3a", "az", "abfs", "abfss", "oss", "oci", "hf"}


class Stat(NamedTuple):
    """As much of os.stat_result as is asked for."""

    st_size: int


class Remote:
    """A file or a folder behind a URL."""

    def __init__(self, system: Any, key: str, prefix: str):
        """system: fsspec's. key: its name there. prefix: what makes a URL of it."""
        self._system, self.key, self._prefix = system, key.rstrip("/"), prefix

    def __str__(self) -> str:
        return self._prefix + self.key

    def __repr__(self) -> str:
        return f"Remote({str(self)!r})"

    def __eq__(self, other) -> bool:
        return isinstance(other, Remote) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> "Remote":
        return self.at(f"{self.key}/{name}")

    def at(self, key: str) -> "Remote":
        """Another one of the same file system."""
        return Remote(self._system, key, self._prefix)

    @property
    def scheme(self) -> str:
        return str(self).split("://")[0]

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    @property
    def suffixes(self) -> list[str]:
        return PurePosixPath(self.key).suffixes

    def absolute(self) -> "Remote":
        return self

    def _info(self) -> dict | None:
        """fsspec's own `exists` takes every error for a no, and a run must not begin where another one lies."""
        with self._telling():
            self._system.invalidate_cache()
            try:
                return self._system.info(self.key)
            except FileNotFoundError:
                return None

    def exists(self) -> bool:
        return self._info() is not None

    def is_file(self) -> bool:
        return (self._info() or {}).get("type") == "file"

    def is_dir(self) -> bool:
        return (self._info() or {}).get("type") == "directory"

    def stat(self) -> Stat:
        if (found := self._info()) is None:
            raise self._missing()
        return Stat(found["size"])

    def identity(self) -> str:
        """What changes when the content does."""
        with self._telling():
            return self._system.ukey(self.key)

    def iterdir(self) -> Iterator["Remote"]:
        """What is in a folder; nothing where there is none."""
        with self._telling():
            self._system.invalidate_cache()
            try:
                found = self._system.ls(self.key, detail=False)
            except FileNotFoundError:
                return
        for key in sorted(found):
            # a store may name the folder itself
            if key.strip("/") != self.key.strip("/"):
                yield self.at(key)

    def sizes(self) -> dict[str, int]:
        """The bytes of every file below, by its name from here on."""
        with self._telling():
            self._system.invalidate_cache()
            found = self._system.find(self.key, detail=True)
        start = len(self.key.strip("/")) + 1
        return {key.strip("/")[start:]: found[key]["size"] for key in sorted(found) if found[key]["type"] == "file"}

    def matching(self) -> list["Remote"]:
        """The files that match this name as a glob; as in a shell, * finds no hidden ones."""
        fixed = PurePosixPath(re.split(r"[*?\[]", self.key)[0] + "x").parent
        hidden = "/." in self.key
        with self._telling():
            self._system.invalidate_cache()
            found = self._system.glob(self.key, detail=True)
        keys = [key for key in sorted(found) if found[key]["type"] == "file"]
        skip = len(fixed.parts)
        return [
            self.at(key)
            for key in keys
            if hidden or not any(part.startswith(".") for part in PurePosixPath(key).parts[skip:])
        ]

    def sha256(self) -> str:
        with self._telling(), self._system.open(self.key, "rb", block_size=BLOCK) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def read_bytes(self) -> bytes:
        with self._telling():
            return self._system.cat_file(self.key)

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_text(self, text: str) -> None:
        with self._telling():
            self._make_folder(self.key)
            self._system.pipe_file(self.key, text.encode())

    def create(self, text: str) -> bool:
        """Write where nothing is yet; whether that was so. One of several is faster where the store can tell."""
        if self.exists():  # some take a condition, and do not look at it
            return False
        with self._telling():
            self._make_folder(self.key)
            try:
                self._system.pipe_file(self.key, text.encode(), mode="create")
            except FileExistsError:
                return False
            return True

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Folders come with the files in them."""

    def rmdir(self) -> None:
        """Folders go with the files in them."""

    def unlink(self, missing_ok: bool = False) -> None:
        with self._telling():
            try:
                self._system.rm_file(self.key)
            except FileNotFoundError:
                if not missing_ok:
                    raise self._missing() from None

    def remove_tree(self, first: str) -> None:
        """All that is below; the file of that name before the others."""
        (self / first).unlink(missing_ok=True)
        with self._telling():
            self._system.invalidate_cache()
            try:
                self._system.rm(self.key, recursive=True)
            except FileNotFoundError:
                return

    def upload(self, folder: Path, names: list[str]) -> None:
        """Files of a folder of this machine, to the same names here; the last one when all others are there."""

        def put(name: str) -> None:
            with (self / name)._telling():
                self._make_folder(f"{self.key}/{name}")
                self._system.put_file(str(folder / name), f"{self.key}/{name}")

        with ThreadPoolExecutor(REQUESTS) as pool:
            list(pool.map(put, names[:-1]))
        for name in names[-1:]:
            put(name)

    def download(self, folder: Path, names: list[str]) -> None:
        """The other way."""

        def get(name: str) -> None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (self / name)._telling():
                self._system.get_file(f"{self.key}/{name}", str(folder / name))

        with ThreadPoolExecutor(REQUESTS) as pool:
            list(pool.map(get, names))

    def _make_folder(self, key: str) -> None:
        if self.scheme not in WITHOUT_FOLDERS:
            self._system.makedirs(str(PurePosixPath(key).parent), exist_ok=True)

    def _missing(self) -> FileNotFoundError:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise self._missing() from None
        except UserError:
            raise
        except Exception as error:  # each library has classes of its own
            raise UserError(f"{path_text(self)}: {reason_of(error)}") from None


Place = Path | Remote


def reason_of(error: Exception) -> str:
    """What an error of some library says, in one line."""
    text = " ".join(str(error).split())
    return text[:300] if text else type(error).__name__


def is_url(text: object) -> bool:
    return isinstance(text, Remote) or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(text)) is not None


def place(text: Place | str) -> Place:
    """The path or URL of that name. Raises UserError where the package for a URL is missing, or the URL wrong."""
    if not is_url(text):
        return Path(text)
    if isinstance(text, Remote):
        return text
    # it takes a tenth of a second, and most runs are here
    import fsspec

    # Orbax opens this one itself, and must see what others write meanwhile
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    scheme, _, rest = text.partition("://")
    url = f"{'gs' if scheme == 'gcs' else scheme}://{rest}".rstrip("/")
    try:
        system, key = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = " (python -m pip install -e '.[gcs]')" if url.startswith("gs:") else ""
        raise UserError(f"{path_text(text)}: {reason_of(error)}{extra}") from None
    except Exception as error:  # of the name, the host, the rights
        raise UserError(f"{path_text(text)}: {reason_of(error)}") from None
    if scheme in ("file", "local"):
        return Path(key)
    key = key.rstrip("/")
    return Remote(system, key, url.removesuffix(key) if url.endswith(key) else f"{scheme}://")


def in_order(work: Callable, items: Iterable, workers: int, ahead: int) -> Iterator:
    """map(work, items) on threads, but with only a few items in memory at one time."""
    items = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque(pool.submit(work, item) for item in islice(items, ahead))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in islice(items, 1))
