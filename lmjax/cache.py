"""Where what can be made again is kept: trained tokenizers, token stores, compiled programs."""

import atexit
import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from lmjax.errors import say_where


def cache_root() -> Path:
    """$LMJAX_CACHE, or ~/.cache/lmjax; a temporary directory where there is no home."""
    if root := os.environ.get("LMJAX_CACHE"):
        return Path(root)
    try:
        return Path.home() / ".cache" / "lmjax"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "lmjax"


@contextmanager
def built_whole(target: Path):
    """A directory to fill, which becomes `target` in one rename, or leaves no trace where the filling fails.

    Where another process was faster, its result stands: both are functions of the same fingerprint.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield scratch
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    except OSError as error:
        say_where(error, target)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def directory_of_this_process() -> Path:
    """A new directory, gone when the process ends. One that was killed leaves its own to the next that asks, which
    finds it unlocked."""
    root = cache_root() / "mirrors"
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob("*.lock"):
        with open(left, "a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(left.with_suffix(""), ignore_errors=True)
            left.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(suffix=".lock", dir=root)
    fcntl.flock(handle, fcntl.LOCK_EX)
    directory = Path(name).with_suffix("")
    directory.mkdir()
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory
