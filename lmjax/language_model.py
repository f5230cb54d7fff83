"""A model to call from Python: text in, log-probabilities and text out."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.errors import UserError, path_text
from lmjax.generate.decode import generate
from lmjax.generate.sampling import choice
from lmjax.generate.text import prompt_ids
from lmjax.loaded import load_model
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.models.packed import Weights
from lmjax.models.packed_params import pack_params
from lmjax.models.transformer import apart
from lmjax.places import Place
from lmjax.tasks.loss import cross_entropy
from lmjax.tokenizers import Tokenizer

SHORTEST = 64

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


@partial(jax.jit, static_argnames="cfg")
def _forward(cfg: ModelConfig, params, tokens_BT, lengths_B):
    """(logits_BTV, log p of each next token (B, T - 1), mean loss)."""
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    hidden_BTD, _ = transformer.hidden(cfg, params, tokens_BT, positions_BT)
    logits_BTV = transformer.logits(transformer.unembedding(cfg, params), hidden_BTD, cfg.logit_cap)
    before_BTV, targets_BT = logits_BTV[:, :-1], tokens_BT[:, 1:]
    log_p_BT = jnp.take_along_axis(jax.nn.log_softmax(before_BTV), targets_BT[..., None], axis=-1)[..., 0]
    weights_BT = (positions_BT[:, 1:] < lengths_B[:, None]).astype(jnp.float32)
    return logits_BTV, log_p_BT, cross_entropy(before_BTV, targets_BT, weights_BT).mean()


class LanguageModel:
    """cfg, params and tokenizer of a causal language model, layers apart. tokenizer: None where there is none; then
    only arrays of ids go in."""

    def __init__(self, cfg: ModelConfig, params: dict, tokenizer: Tokenizer | None, path: Place):
        self.cfg, self.tokenizer, self.path = cfg, tokenizer, path
        self.params = apart(params)

    def __call__(self, text: Text) -> Output:
        """Logits and loss of a text, a list of texts, or an integer array (B, T) of ids. Raises UserError where a text
        is longer than the model's context, has no token, or an id is outside the vocabulary."""
        tokens, lengths = self._batch(text)
        logits, _, loss = self._run(tokens, lengths)
        return Output(tokens, lengths, logits[:, : tokens.shape[1]], float(loss))

    def score(self, text: Text) -> Score | list[Score]:
        """A Score for a text, a list of them for a list or an array. Raises UserError as a call."""
        tokens, lengths = self._batch(text)
        _, each, _ = self._run(tokens, lengths)
        each = np.asarray(each)
        # float64: thousands of float32 terms lose digits
        scores = [
            Score(float(each[i, : n - 1].sum(dtype=np.float64)), tokens[i, :n], each[i, : n - 1])
            for i, n in enumerate(lengths)
        ]
        return scores[0] if isinstance(text, str) else scores

    def generate(
        self, prompt: Text, *, max_new_tokens: int = 20, temperature: float = 0.0, top_k: int | None = None,
        top_p: float = 1.0, min_p: float = 0.0, seed: int = 0,
    ) -> str | list[str] | list[np.ndarray]:  # fmt: skip
        """The prompt with what follows it: a str for a str, a list for a list, a list of arrays of ids for an array.
        temperature 0 takes the most probable token each time. Raises UserError as a call, and for want of room."""
        how = choice(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        prompts = self._ids(prompt)
        stops = () if self.tokenizer is None else self.tokenizer.policy.stops
        known = None if self.tokenizer is None else self.tokenizer.vocab_size
        news = generate(
            self.cfg, self.params, prompts, max_new_tokens=max_new_tokens, how=how, seed=seed, stops=stops, known=known
        )
        rows = [np.concatenate([old, new]) for old, new in zip(prompts, news, strict=True)]
        if isinstance(prompt, np.ndarray):
            return rows
        texts = [self.tokenizer.decode(row) for row in rows]
        return texts[0] if isinstance(prompt, str) else texts

    def _run(self, tokens, lengths):
        """Filled up to one of few lengths, so that a text of another length compiles nothing."""
        T = SHORTEST
        while tokens.shape[1] > T:
            T *= 2
        padded = np.pad(tokens, ((0, 0), (0, min(T, self.cfg.context) - tokens.shape[1])))
        return _forward(self.cfg, self.params, padded, lengths)

    def _batch(self, text: Text) -> tuple[np.ndarray, np.ndarray]:
        rows = self._ids(text)
        for row in rows:
            if not 1 <= len(row) <= self.cfg.context:
                raise UserError(f"a text of {len(row)} tokens; expected 1 to {self.cfg.context}, the model's context")
        lengths = np.array([len(row) for row in rows], np.int32)
        tokens = np.zeros((len(rows), max(lengths)), np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
        return tokens, lengths

    def _ids(self, text: Text) -> list[np.ndarray]:
        if isinstance(text, str | list):
            if self.tokenizer is None:
                raise UserError(f"{path_text(self.path)} has no tokenizer; expected an array of token ids")
            texts = [text] if isinstance(text, str) else text
            if not texts:
                raise UserError("the list of texts is empty")
            return [prompt_ids(item, self.tokenizer) for item in texts]
        ids = np.asarray(text)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or not ids.size:
            raise UserError(f"ids of shape {ids.shape} and dtype {ids.dtype}; expected integers of shape (B, T)")
        if ids.min() < 0 or ids.max() >= self.cfg.vocab:
            raise UserError(f"ids from {ids.min()} to {ids.max()}; expected 0 to {self.cfg.vocab - 1}, the vocabulary")
        return list(ids.astype(np.int32))


def load(
    path: Place | str, *, step: int | str | None = None, dtype: Literal["float32", "bfloat16"] = "float32",
    weights: Weights = "float32",
) -> LanguageModel:  # fmt: skip
    """The model of a run directory or a Hugging Face directory, or "hf:NAME" from the hub (extra [hub]). dtype: of the
    computation. weights: see models/packed.py. step: see `load_model`. Raises UserError as that."""
    loaded = load_model(path, step, stacked=False)
    cfg = replace(loaded.experiment.model, dtype=dtype, dropout=0.0)
    return LanguageModel(cfg, pack_params(cfg, apart(loaded.params), weights), loaded.tokenizer, loaded.path)
