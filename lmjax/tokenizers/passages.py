"""What a tokenizer is trained on."""

from collections.abc import Iterable


def passages(texts: Iterable[str], limit: int):
    """Passages of about 4,000 characters, until `limit` bytes are given; NUL is left out, which the trainer refuses."""
    given = 0
    for text in texts:
        for start in range(0, len(text), 4000):
            passage = text[start : start + 4000].replace("\0", "")
            given += len(passage.encode("utf-8", errors="replace"))
            if given > limit:
                return
            if passage:
                yield passage
