"""A masked language model to call from Python: text in, what may stand at each place out."""

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from lmjax.batching import Reader, Text
from lmjax.errors import UserError, path_text
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.models.positions import in_rows
from lmjax.models.transformer import apart
from lmjax.places import Place
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.passages import MASKS
from lmjax.tokenizers.sides import source_ids


@dataclass(frozen=True)
class Places:
    """tokens: (B, T) ids, rows filled up on the right with 0. lengths: (B,) how many of a row count. logits: (B, T, V)
    in float32, of the token that stands at each place."""

    tokens: np.ndarray
    lengths: np.ndarray
    logits: jax.Array


@partial(jax.jit, static_argnames="cfg")
def _forward(cfg: ModelConfig, params, tokens_BT, lengths_B):
    positions_BT, segments_BT = in_rows(tokens_BT, lengths_B)
    hidden_BTD, _ = transformer.hidden(cfg, params, tokens_BT, positions_BT, segments_BT)
    return transformer.masked_logits(cfg, params, hidden_BTD)


class MaskedModel:
    """cfg, params and tokenizer of an encoder that was trained on masked tokens, layers apart. tokenizer: None where
    there is none; then only arrays of ids go in."""

    def __init__(self, cfg: ModelConfig, params: dict, tokenizer: Tokenizer | None, path: Place):
        self.cfg, self.tokenizer, self.path = cfg, tokenizer, path
        self.params = apart(params)
        self._reader = Reader(cfg, tokenizer, path)

    @property
    def mask(self) -> int:
        """The id that hides others. Raises UserError where the tokenizer has none."""
        if self.tokenizer is None or self.tokenizer.policy.mask is None:
            raise UserError(f"{path_text(self.path)}: its tokenizer has no mask token")
        return self.tokenizer.policy.mask

    def __call__(self, text: Text) -> Places:
        """Logits of a text, a list of texts, each with what the tokenizer puts around it, or an integer array (B, T) of
        ids. [MASK] or <mask> in a text hides a token. Raises UserError where a text is longer than the model's context,
        has no token, or an id is outside the vocabulary."""
        tokens, lengths = self._reader.filled_up(self._reader.rows(text, lambda one, _: self.encode(one)))
        logits_BTV = _forward(self.cfg, self.params, self._reader.padded(tokens), lengths)
        return Places(tokens, lengths, logits_BTV[:, : tokens.shape[1]])

    def encode(self, text: str) -> np.ndarray:
        """`source_ids`, with the mask where the text names it. Raises UserError where it does, and there is none."""
        tokenizer = self.tokenizer
        mark = next((mark for mark in MASKS if mark in text), None)
        if mark is None:
            return source_ids(text, tokenizer)
        # RoBERTa's mask takes the space before it, as that is a part of the word that it stands for
        left, right = tokenizer.takes_spaces(self.mask)
        parts = text.split(mark)
        parts = [part.rstrip() if left else part for part in parts[:-1]] + parts[-1:]
        before, *parts = parts[:1] + [part.lstrip() if right else part for part in parts[1:]]
        ids = source_ids(before, tokenizer)
        around = len(ids) - (tokenizer.policy.eos is not None)
        rows = [ids[:around]]
        for part in parts:
            rows += [[self.mask], tokenizer.encode(part)]
        return np.concatenate([*rows, ids[around:]]).astype(np.int32)

    def fill(self, text: str, top: int = 5) -> list[list[tuple[str, float]]]:
        """For each [MASK] or <mask> of a text the most probable tokens with their probabilities. Raises UserError where
        there is none, and as a call."""
        found = self(text)
        places = np.flatnonzero(found.tokens[0] == self.mask)
        if not len(places):
            raise UserError(f"{text[:60]!r}: expected a place to fill, [MASK] or <mask>")
        known = self.tokenizer.vocab_size
        p_KV = np.asarray(jax.nn.softmax(found.logits[0, places, :known]), np.float64)
        return [[(self.tokenizer.decode([i]), float(p_V[i])) for i in np.argsort(-p_V)[:top]] for p_V in p_KV]
