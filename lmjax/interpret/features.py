"""What the features of a sparse autoencoder (models/autoencoder.py) stand for: where each is active, and how much."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.batching import Text
from lmjax.errors import UserError, path_text
from lmjax.interpret.capture import Model, Read, capture, forward, read
from lmjax.models import autoencoder
from lmjax.models.config import ModelConfig
from lmjax.tokenizers.sides import prompt_ids

# rows that are read at one time
ROWS = 16


class Context(NamedTuple):
    """A token at which a feature is active, with what stands around it. text: the number of its text. place: the
    token's place among that text's tokens, from 0."""

    activation: float
    before: str
    token: str
    after: str
    text: int
    place: int


def features(model: Model, text: Text | jax.Array | Read) -> jax.Array:
    """(B, T, F): how active each feature is at each token, 0 where it is not; of standardised vectors. Pure. Raises
    UserError where the model has no autoencoder, and as `capture`."""
    site = _site(model)
    return _active(model.cfg, model.params, capture(model, text, site)[site])


def reconstructed(model: Model, text: Text | jax.Array | Read) -> tuple[jax.Array, jax.Array]:
    """(what stands at the site, what its features make of it), (B, T, D) each. Raises UserError as `features`."""
    site = _site(model)
    x_BTD = capture(model, text, site)[site]
    return x_BTD, autoencoder.reconstructed(model.cfg, model.params, x_BTD)


def contexts(
    model: Model, texts: Sequence[str], *, of: Sequence[int] | None = None, top: int = 5, around: int = 10
) -> dict[int, list[Context]]:
    """For each feature the places where it is most active, highest first, at most one of each window of the model's
    context; none where it is nowhere active. of: which features; None: all. around: tokens before and after. Raises
    UserError as `features`, for no text, and for a feature that there is not."""
    _site(model)
    count = model.cfg.autoencoder.features
    of = range(count) if of is None else of
    if wrong := [one for one in of if not 0 <= one < count]:
        raise UserError(f"feature {wrong[0]}: expected 0 to {count - 1}")
    windows = _windows(model, texts)
    found = [_most_active(model, windows[i : i + ROWS]) for i in range(0, len(windows), ROWS)]
    active_WF, places_WF = (np.concatenate(parts) for parts in zip(*found, strict=True))
    best = {one: np.argsort(-active_WF[:, one], kind="stable")[:top] for one in of}
    return {
        one: [
            _context(model, windows[w], float(active_WF[w, one]), int(places_WF[w, one]), around)
            for w in best[one]
            if active_WF[w, one] > 0
        ]
        for one in of
    }


class _Window(NamedTuple):
    ids: np.ndarray
    text: int
    start: int


def _windows(model: Model, texts: Sequence[str]) -> list[_Window]:
    texts = [texts] if isinstance(texts, str) else list(texts)
    if model.tokenizer is None or not texts:
        raise UserError(f"{path_text(model.path)}: expected a tokenizer, and at least one text")
    rows = [prompt_ids(text, model.tokenizer) for text in texts]
    T = model.cfg.context
    return [
        _Window(ids[start : start + T], text, start) for text, ids in enumerate(rows) for start in range(0, len(ids), T)
    ]


def _most_active(model: Model, windows: list[_Window]) -> tuple[np.ndarray, np.ndarray]:
    """(how active each feature is at most, where), (W, F) each; all batches are of one shape."""
    tokens_BT = np.zeros((ROWS, model.cfg.context), np.int32)
    lengths_B = np.ones(ROWS, np.int32)
    for row, window in enumerate(windows):
        tokens_BT[row, : len(window.ids)], lengths_B[row] = window.ids, len(window.ids)
    rows = read(model, tokens_BT)._replace(lengths=lengths_B)
    active_BF, places_BF = _strongest(model.cfg, model.params, rows)
    return np.asarray(active_BF)[: len(windows)], np.asarray(places_BF)[: len(windows)]


@partial(jax.jit, static_argnames="cfg")
def _strongest(cfg: ModelConfig, params, rows: Read):
    site = cfg.autoencoder.site
    active_BTF = _active(cfg, params, forward(cfg, params, rows, (site,), {})[site])
    there_BT = jnp.arange(rows.tokens.shape[1]) < rows.lengths[:, None]
    active_BTF = jnp.where(there_BT[..., None], active_BTF, -1.0)
    return active_BTF.max(axis=1), active_BTF.argmax(axis=1)


@partial(jax.jit, static_argnames="cfg")
def _active(cfg: ModelConfig, params, x_BTD: jax.Array) -> jax.Array:
    return autoencoder.features(cfg, params, autoencoder.standardised(x_BTD)[0])


def _context(model: Model, window: _Window, activation: float, place: int, around: int) -> Context:
    pieces = window.ids[max(0, place - around) : place], window.ids[place : place + 1]
    after = window.ids[place + 1 : place + 1 + around]
    before, token, after = (model.tokenizer.decode(ids) for ids in (*pieces, after))
    return Context(activation, before, token, after, window.text, window.start + place)


def _site(model: Model) -> str:
    if model.cfg.autoencoder is None:
        raise UserError(f"{path_text(model.path)} has no sparse autoencoder; experiments/sae_small.py trains one")
    return model.cfg.autoencoder.site
