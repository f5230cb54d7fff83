"""A text made of a record's fields."""

import re
from typing import Protocol


class HasTexts(Protocol):
    """A record."""

    def text(self, name: str) -> str:
        """Raises UserError where the field is missing, or no text."""


def names(template: str) -> list[str]:
    """The fields that a template has in braces, each once."""
    return list(dict.fromkeys(re.findall(r"\{(\w+)\}", template)))


def filled(template: str, record: HasTexts) -> str:
    """The template with the record's texts in the place of {field}. Raises UserError as `text`."""
    return re.sub(r"\{(\w+)\}", lambda match: record.text(match[1]), template)
