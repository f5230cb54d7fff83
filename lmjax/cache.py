"""Where what can be made again is kept: trained tokenizers, token stores, compiled programs."""

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
