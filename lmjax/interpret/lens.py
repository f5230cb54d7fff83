"""What a model would say if it stopped after each of its layers: the logit lens (nostalgebraist, 2020), or the tuned
lens (`tuned_lens`). The residual stream goes through the model's own last norm and unembedding."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.batching import Text
from lmjax.errors import UserError, path_text
from lmjax.interpret.capture import Model, Read, forward, read
from lmjax.interpret.residual import read_out, stream
from lmjax.interpret.tuned_lens import TunedLens
from lmjax.models.config import ModelConfig


@dataclass(frozen=True)
class Lens:
    """Of R rows, "embed" before the first block and "0", "1", ... after each one, so that the last is the model's own
    answer; B texts of T tokens. tokens: (B, T), what was read. ids, log_p: (R, B, T, top), the most probable tokens and
    their log-probabilities in falling order. own_log_p: (R, B, T), of the token that comes next, of a model that is not
    causal of the one that stands there; nan where there is none. entropy: (R, B, T), in nats. kl: (R, B, T), nats from
    the last row to this one, D(last || this)."""

    rows: tuple[str, ...]
    tokens: np.ndarray
    ids: np.ndarray
    log_p: np.ndarray
    own_log_p: np.ndarray
    entropy: np.ndarray
    kl: np.ndarray


def logit_lens(
    model: Model, text: Text | jax.Array | Read, *, top: int = 5, source: Text | jax.Array | None = None,
    tuned: TunedLens | None = None,
) -> Lens:  # fmt: skip
    """Logits of one row and of the last exist at a time. tuned: what each row but the last goes through first. Raises
    UserError for a model of labels, a tuned lens of another model, and as `capture.read`."""
    cfg = model.cfg
    if cfg.outputs:
        raise UserError(f"{path_text(model.path)} is a model of labels; expected one that predicts tokens")
    if not 1 <= top <= cfg.vocab:
        raise UserError(f"top is {top}; expected 1 to {cfg.vocab}, the vocabulary")
    if tuned is not None:
        tuned.check(model)
    rows = read(model, text, source)
    return lens_of(model, rows, forward(cfg, model.params, rows, stream(cfg), {}), top=top, tuned=tuned)


def lens_of(
    model: Model, rows: Read, found: dict[str, jax.Array], *, top: int, tuned: TunedLens | None = None
) -> Lens:  # fmt: skip
    """`logit_lens` from what stood at the sites of `residual.stream`."""
    cfg, tokens_BT = model.cfg, jnp.asarray(rows.tokens)
    lengths = np.full(len(rows.tokens), rows.tokens.shape[1]) if rows.lengths is None else np.asarray(rows.lengths)
    names = ("embed", *map(str, range(cfg.layers)))
    x_RBTD = jnp.stack([found[name] for name in stream(cfg)])
    own_BT = jnp.roll(tokens_BT, -1, axis=1) if cfg.causal else tokens_BT
    said = jax.device_get(_lens(cfg, model.params, x_RBTD, own_BT, tuned, top))
    there_BT = np.arange(rows.tokens.shape[1]) < lengths[:, None] - (1 if cfg.causal else 0)
    said["own_log_p"] = np.where(there_BT, said["own_log_p"], np.nan)
    return Lens(names, np.asarray(rows.tokens), **said)


@partial(jax.jit, static_argnames=("cfg", "top"))
def _lens(cfg: ModelConfig, params, x_RBTD, own_BT, tuned: TunedLens | None, top: int) -> dict:
    last_BTV = jax.nn.log_softmax(read_out(cfg, params, x_RBTD[-1]))
    last_p_BTV = jnp.exp(last_BTV)

    def row(x_BTD):
        log_p_BTV = jax.nn.log_softmax(read_out(cfg, params, x_BTD))
        B, T, V = log_p_BTV.shape
        # of two axes, for which XLA has a quick way on a CPU
        best, ids = jax.lax.top_k(log_p_BTV.reshape(B * T, V), top)
        return {
            "ids": ids.reshape(B, T, top),
            "log_p": best.reshape(B, T, top),
            "own_log_p": jnp.take_along_axis(log_p_BTV, own_BT[..., None], axis=-1)[..., 0],
            # as products, which XLA's CPU backend sums several times faster than it sums an axis
            "entropy": -jnp.einsum("BTV,BTV->BT", jnp.exp(log_p_BTV), log_p_BTV),
            "kl": jnp.einsum("BTV,BTV->BT", last_p_BTV, last_BTV - log_p_BTV),
        }

    return jax.lax.map(row, x_RBTD if tuned is None else tuned(x_RBTD))
