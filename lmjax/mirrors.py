"""Directories of this process for what lies at a URL: files to be uploaded, and files that were downloaded."""

import hashlib
import tempfile
from functools import cache
from pathlib import Path

from lmjax.cache import built_whole, cache_root, directory_of_this_process
from lmjax.places import Place, Remote


def new(place: Place) -> Path:
    """An empty directory for what lies at a URL; a path is its own."""
    return place if isinstance(place, Path) else Path(tempfile.mkdtemp(dir=_root()))


@cache
def of(place: Place) -> Path:
    """As `new`, but one for all who ask."""
    return new(place)


def copied(place: Remote, patterns: list[str]) -> Path:
    """A folder's files of these kinds, kept in the cache under a name that says what they are."""
    files = sorted((file for pattern in patterns for file in (place / pattern).matching()), key=lambda file: file.name)
    identity = repr([str(place), *((file.name, file.identity()) for file in files)])
    directory = cache_root() / "models" / hashlib.sha256(identity.encode()).hexdigest()[:32]
    if not directory.is_dir():
        with built_whole(directory) as scratch:
            place.download(scratch / place.name, [file.name for file in files])
    return directory / place.name


@cache
def _root() -> Path:
    return directory_of_this_process()
