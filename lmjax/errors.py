"""The one exception for mistakes that a user can mend."""

from contextlib import contextmanager


class UserError(Exception):
    """What was wrong, where, and what was expected, in one line; the command line exits with code 2."""


class Notice(UserWarning):
    """What was done otherwise than a user may think, in one line; the command line prints it and goes on."""


@contextmanager
def at(where: str):
    """A mistake that is found inside is told with its place."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def path_text(path) -> str:
    """A path as a user can read and copy it: control characters escaped, everything else as it is."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


def one_line(error: UserError | OSError) -> str:
    """What is written after "error: "."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"{path_text(error.filename or 'a file')}: {error.strerror}"
    return " ".join(str(error).split("\n"))


def say_where(error: BaseException | None, path) -> None:
    """Give an error of the operating system a place where it names none, as for a disk that fills up."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = str(path)
