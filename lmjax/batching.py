"""What a caller gives a model, texts or ids, as rows of ids; and what a model makes of them."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.errors import UserError, path_text
from lmjax.generate.decode import filled_up, padded
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.places import Place
from lmjax.tasks.loss import cross_entropy
from lmjax.tokenizers import Tokenizer

Text = str | list[str] | np.ndarray


@dataclass(frozen=True)
class Output:
    """tokens: (B, T) ids, rows filled up on the right with 0. lengths: (B,) how many of a row count. logits: (B, T, V)
    in float32, of the token after each. loss: nats per token that has one before it, mean over the batch."""

    tokens: np.ndarray
    lengths: np.ndarray
    logits: jax.Array
    loss: float


@dataclass(frozen=True)
class Score:
    """log_probability: of the text, in nats, given its first token. tokens: its ids. each: log p of every token after
    the first, given those before it."""

    log_probability: float
    tokens: np.ndarray
    each: np.ndarray


def judged(cfg: ModelConfig, params, hidden_BTD, tokens_BT, lengths_B):
    """(logits_BTV, log p of each next token (B, T - 1), mean loss)."""
    logits_BTV = transformer.logits(transformer.unembedding(cfg, params), hidden_BTD, cfg.logit_cap)
    before_BTV, targets_BT = logits_BTV[:, :-1], tokens_BT[:, 1:]
    log_p_BT = jnp.take_along_axis(jax.nn.log_softmax(before_BTV), targets_BT[..., None], axis=-1)[..., 0]
    weights_BT = (jnp.arange(1, tokens_BT.shape[1]) < lengths_B[:, None]).astype(jnp.float32)
    return logits_BTV, log_p_BT, cross_entropy(before_BTV, targets_BT, weights_BT).mean()


def scores(tokens_BT: np.ndarray, lengths_B: np.ndarray, each_BT: np.ndarray) -> list[Score]:
    """each_BT: as `judged` gives it."""
    # float64: thousands of float32 terms lose digits
    return [
        Score(float(each[: n - 1].sum(dtype=np.float64)), tokens[:n], each[: n - 1])
        for tokens, n, each in zip(tokens_BT, lengths_B, each_BT, strict=True)
    ]


@dataclass(frozen=True)
class Reader:
    """Of a model, and its tokenizer; None: there is none, and only arrays of ids are read."""

    cfg: ModelConfig
    tokenizer: Tokenizer | None
    path: Place

    @property
    def writing(self) -> dict:
        """What the tokenizer says of writing: which tokens end a text, and how many ids there are."""
        if self.tokenizer is None:
            return {}
        return {"stops": self.tokenizer.policy.stops, "known": self.tokenizer.vocab_size}

    def rows(self, text: Text, encode: Callable[[str, Tokenizer], np.ndarray]) -> list[np.ndarray]:
        """The ids of each. Raises UserError where a text has no tokenizer, or ids are no ids of the model's."""
        if isinstance(text, str | list):
            if self.tokenizer is None:
                raise UserError(f"{path_text(self.path)} has no tokenizer; expected an array of token ids")
            texts = [text] if isinstance(text, str) else text
            if not texts:
                raise UserError("the list of texts is empty")
            if wrong := [item for item in texts if not isinstance(item, str)]:
                raise UserError(f"{wrong[0]!r} is no text; expected a text, or a list of them")
            return [encode(item, self.tokenizer) for item in texts]
        ids = np.asarray(text)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or not ids.size:
            raise UserError(f"ids of shape {ids.shape} and dtype {ids.dtype}; expected integers of shape (B, T)")
        if ids.min() < 0 or ids.max() >= self.cfg.vocab:
            raise UserError(f"ids from {ids.min()} to {ids.max()}; expected 0 to {self.cfg.vocab - 1}, the vocabulary")
        return list(ids.astype(np.int32))

    def filled_up(self, rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(tokens (B, T), lengths (B,)). Raises UserError where a row is empty or longer than the model's context."""
        for row in rows:
            if not 1 <= len(row) <= self.cfg.context:
                raise UserError(f"a text of {len(row)} tokens; expected 1 to {self.cfg.context}, the model's context")
        return filled_up(rows)

    def padded(self, tokens_BT: np.ndarray) -> np.ndarray:
        """Filled up to one of few lengths."""
        return padded(tokens_BT, self.cfg.context)

    def as_asked(self, text: Text, rows: list[np.ndarray]) -> str | list[str] | list[np.ndarray]:
        """Rows of ids as the caller gave them: a text for a text, a list for a list, ids for ids."""
        if not isinstance(text, str | list):
            return rows
        texts = [self.tokenizer.decode(row) for row in rows]
        return texts[0] if isinstance(text, str) else texts
