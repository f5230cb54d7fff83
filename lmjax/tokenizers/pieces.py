"""What single tokens of a text say, with the spaces that they have in it."""

from collections.abc import Sequence

import numpy as np

from lmjax.tokenizers.kinds import Tokenizer


def filled(tokenizer: Tokenizer, tokens: np.ndarray, places: Sequence[int], others: Sequence[int], mark: str) -> str:
    """The text of these tokens. At each of the places what stands there is in brackets; where another token is given
    for the place, that one goes before it, and mark between the two. A control token is its number, as <7>."""
    parts, start = [], 0
    for place, other in sorted(zip(map(int, places), map(int, others), strict=True)):
        parts.append(_added(tokenizer, tokens[:start], tokens[start:place]))
        both = [other, int(tokens[place])] if other != tokens[place] else [other]
        parts.append(f"[{mark.join(_piece(tokenizer, tokens[:place], token) for token in both)}]")
        start = place + 1
    return "".join([*parts, _added(tokenizer, tokens[:start], tokens[start:])])


def pieces(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text of those before it: "" where a character goes on in the next one, the name of a
    control token."""
    found, before = [], []
    for token in map(int, tokens):
        found.append(name_of(tokenizer, token) or _added(tokenizer, before, [token]))
        before.append(token)
    # a character in several tokens belongs to its last one
    return ["" if piece.strip("\ufffd") == "" and piece else piece for piece in found]


def words(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """Each token alone, as it stands behind other text."""
    some = tokenizer.encode("a").tolist()
    return [name_of(tokenizer, token) or _added(tokenizer, some, [token]) for token in map(int, tokens)]


def name_of(tokenizer: Tokenizer, token: int) -> str | None:
    """What a control token is called; None where it is none."""
    if token not in tokenizer.controls():
        return None
    named = {index: name for name, index in tokenizer.special_tokens().items()}
    return named.get(token, "<mask>" if token == tokenizer.policy.mask else f"<{token}>")


def _piece(tokenizer: Tokenizer, before: np.ndarray, token: int) -> str:
    return f"<{token}>" if token in tokenizer.controls() else _added(tokenizer, before, [token])


def _added(tokenizer: Tokenizer, before: Sequence[int], more: Sequence[int]) -> str:
    """What further tokens add to a text: alone they may have another one."""
    old, new = tokenizer.decode(before), tokenizer.decode([*before, *more])
    return new[same_beginning(old, new) :]


def same_beginning(one: str, other: str) -> int:
    """How many characters both begin with."""
    if other.startswith(one):
        return len(one)
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
