"""Files that somebody else wrote: of bounded size, UTF-8, an object of JSON; each mistake is one line with the file."""

import json
from pathlib import Path
from typing import Any

from lmjax.errors import UserError, path_text


def read_text(file: Path, limit: int, expected: str) -> str:
    """The text of a file of at most `limit` bytes. Raises UserError; expected: what such a file is, said where it is
    too large."""
    try:
        if file.stat().st_size > limit:
            raise UserError(f"{path_text(file)}: larger than {limit:,} bytes; expected {expected}")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path_text(file)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path_text(file)}: not UTF-8 at byte {error.start}") from None


def read_object(file: Path, limit: int, expected: str) -> dict[str, Any]:
    """The object of JSON in it. Raises UserError as `read_text`, and where it is none."""
    try:
        found = json.loads(read_text(file, limit, expected))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path_text(file)}: not JSON: {' '.join(str(error).split())[:100]}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path_text(file)}: expected an object of JSON")
    return found


def object_if_there(file: Path, limit: int, expected: str) -> dict[str, Any]:
    """As `read_object`; empty where there is no such file."""
    return read_object(file, limit, expected) if file.is_file() else {}
