"""The answers that a record has to a question, as several formats have them."""

from typing import NamedTuple

from lmjax.data.sources import Record
from lmjax.errors import UserError


class Answer(NamedTuple):
    """start: its first character in the context; None where the record does not say it."""

    text: str
    start: int | None = None


def answers_of(record: Record, name: str) -> list[Answer]:
    """Those in a field: a text, a list of texts or, as SQuAD has it, of {"text", "answer_start"}, or an object of two
    lists, as Hugging Face's datasets write that. Raises UserError for anything else."""
    given = record.field(name)
    if isinstance(given, str):
        given = [given]
    if isinstance(given, dict):
        given = _together(given)
    if not isinstance(given, list):
        raise _unlike(record, name)
    found = []
    for one in given:
        one = {"text": one} if isinstance(one, str) else one
        if not isinstance(one, dict) or "text" not in one:
            raise _unlike(record, name)
        text = Record(record.name, f"{record.where}: an answer in {name!r}", one).text("text")
        found.append(Answer(text, one.get("answer_start")))
    return found


def _together(given: dict) -> list[dict] | None:
    """Of two lists one of objects; None where they are not as long."""
    texts = given.get("text")
    starts = given.get("answer_start", [None] * len(texts) if isinstance(texts, list) else None)
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        return None
    return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]


def _unlike(record: Record, name: str) -> UserError:
    form = 'a text, a list of texts or of {"text", "answer_start"}, or an object of two such lists, equally long'
    return UserError(f"{record.where}: {name!r} is {str(record.field(name))[:40]!r}; expected {form}")
