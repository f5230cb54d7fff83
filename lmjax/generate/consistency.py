"""Self-consistency: of several texts for one prompt, the answer that most of them have (Wang et al. 2022,
arXiv:2203.11171, section 2), and how many agree, which says how far it can be trusted."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from lmjax.errors import UserError
from lmjax.tasks.text_metrics import normalised


class Vote(NamedTuple):
    """answer: as the first text that has it writes it; "" where no text has one. agreement: the share of all texts."""

    answer: str
    agreement: float


def pattern(text: str | None) -> re.Pattern | None:
    """Of --answer. Raises UserError for one that is no regular expression."""
    if text is None:
        return None
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"--answer {text!r}: no regular expression: {error}") from None


def extracted(text: str, answer: re.Pattern | None) -> str | None:
    """The answer in a text: the last match, of its group where it has one; None: there is none. Without a pattern the
    whole text."""
    if answer is None:
        return text.strip()
    found = [match[1 if answer.groups else 0] for match in answer.finditer(text)]
    return found[-1].strip() if found and found[-1] is not None else None


def vote(answers: Sequence[str | None]) -> Vote:
    """Answers that are the same after SQuAD's normalisation are one; of two that are as frequent the first. None does
    not vote."""
    said = [answer for answer in answers if answer is not None]
    if not said:
        return Vote("", 0.0)
    # most_common keeps the order in which equals came
    (winner, count), *_ = Counter(map(normalised, said)).most_common(1)
    return Vote(next(answer for answer in said if normalised(answer) == winner), count / len(answers))
