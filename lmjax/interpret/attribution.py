"""Shares of a logit, whatever they are shares of; which place of which text is asked about, and which token."""

from dataclasses import dataclass

import numpy as np

from lmjax.errors import UserError, path_text
from lmjax.interpret.capture import Model, Read


@dataclass(frozen=True)
class Attribution:
    """values: (C,) shares of a logit, in its units, of what `names` says. total: what they are shares of. position:
    of the token in its row. target, against: the logit is that of the one, less that of the other, where there is
    one."""

    names: tuple[str, ...]
    values: np.ndarray
    total: float
    position: int
    target: int
    against: int | None = None

    @property
    def error(self) -> float:
        """By how much their sum differs from total."""
        return float(self.values.sum(dtype=np.float64)) - self.total

    def largest(self, count: int = 10) -> list[tuple[str, float]]:
        """Those furthest from 0, in falling order."""
        order = np.argsort(-np.abs(self.values), kind="stable")[:count]
        return [(self.names[i], float(self.values[i])) for i in order]


def place_of(model: Model, rows: Read, row: int, position: int | None) -> int:
    """The position from 0; a negative one counts from the row's end. None: where the model says what it says of the
    whole text, the last place of a causal one, the first of another with labels. Raises UserError where there is no
    such row or position, and for None of a model that says nothing of a whole text."""
    if not 0 <= row < len(rows.tokens):
        raise UserError(f"row {row}: expected 0 to {len(rows.tokens) - 1}, the texts")
    if position is None:
        if not (model.cfg.causal or model.cfg.outputs):
            raise UserError(f"{path_text(model.path)} fills in places of a text; expected a position")
        position = -1 if model.cfg.causal else 0
    length = rows.tokens.shape[1] if rows.lengths is None else int(rows.lengths[row])
    if not -length <= position < length:
        raise UserError(f"position {position}: expected {-length} to {length - 1}, the text's tokens")
    return position % length


def token_of(model: Model, token: int | str) -> int:
    """An id as it is; the id of a text of one token, or the number of a label by its name. Raises UserError for what is
    none of these."""
    if isinstance(token, str):
        if model.cfg.outputs:
            if token not in model.labels:
                raise UserError(f"{token!r}: expected a label, one of {', '.join(model.labels)}")
            return model.labels.index(token)
        if model.tokenizer is None:
            raise UserError(f"{path_text(model.path)} has no tokenizer; expected a token's id")
        ids = model.tokenizer.encode(token)
        if len(ids) != 1:
            raise UserError(f"{token!r} is {len(ids)} tokens; expected one")
        return int(ids[0])
    known = model.cfg.outputs or model.cfg.vocab
    if not 0 <= token < known:
        raise UserError(f"target {token}: expected 0 to {known - 1}")
    return int(token)


def check_slopes(model: Model) -> None:
    """Raises UserError for weights of int8, where vectors are rounded on the way: the gradient of that is 0."""
    packed = model.params.get("packed_unembedding")
    if packed is not None and packed.step_O is not None:
        raise UserError(f"{path_text(model.path)}: no gradient goes through weights of int8; expected others")


def check_plain(model: Model) -> None:
    """Raises UserError for weights that lie packed: what is computed of them one by one needs them as they were."""
    if "packed_unembedding" in model.params:
        raise UserError(f"{path_text(model.path)}: its weights are packed; expected weights of float32")
