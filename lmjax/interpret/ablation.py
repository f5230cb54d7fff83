"""Parts of a model taken out, to see what they are for."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.batching import Text
from lmjax.errors import UserError
from lmjax.interpret.capture import LOGITS, Model, Read, capture, patch, read, sites
from lmjax.models.tap import OF_PATTERNS, Patch, check_sites
from lmjax.tasks.loss import cross_entropy

How = Literal["zero", "mean", "resample"]


class Ablation(NamedTuple):
    """logits: (B, T, V) without the parts. loss, whole_loss: nats a token without them and of the whole model; None of
    a model that does not predict the next token."""

    logits: jax.Array
    loss: float | None
    whole_loss: float | None


def ablate(
    model: Model, text: Text | jax.Array | Read, parts: Sequence[str] | Mapping[str, Sequence[int] | None], *,
    how: How = "zero", over: Text | jax.Array | Read | None = None, seed: int = 0,
) -> Ablation:  # fmt: skip
    """The model without what these sites give. parts: sites, or {site: which heads, or which numbers on the last axis
    where it has no heads; None: all}. how: "zero"; "mean": what stands there in the mean over all tokens of the texts
    `over`; "resample": what stands there, place by place, in one of those texts drawn for each row, of those that are
    long enough. Raises UserError for another word, `over` where it is not needed or missing, no text that is long
    enough, and as `capture`."""
    if how not in get_args(How):
        raise UserError(f"how is {how!r}; expected one of {', '.join(get_args(How))}")
    if (over is None) != (how == "zero"):
        raise UserError(f"how is {how!r}; expected {'no texts' if how == 'zero' else 'texts'} in `over`")
    parts = parts if isinstance(parts, Mapping) else dict.fromkeys([parts] if isinstance(parts, str) else parts)
    known, rows = sites(model), read(model, text)
    check_sites(parts, known)
    values = dict.fromkeys(parts, jnp.zeros(()))
    if how == "mean":
        values = _means(model, over, parts)
    elif how == "resample":
        values = capture(model, _drawn(model, over, rows, seed), list(parts))
    patches = {site: Patch(values[site], _which(site, chosen, known[site])) for site, chosen in parts.items()}
    logits_BTV, whole_BTV = patch(model, rows, patches), capture(model, rows, LOGITS)[LOGITS]
    if not model.cfg.causal or model.cfg.outputs:
        return Ablation(logits_BTV, None, None)
    return Ablation(logits_BTV, _loss(logits_BTV, rows), _loss(whole_BTV, rows))


def _which(site: str, chosen: Sequence[int] | None, shape: tuple[int, ...]) -> jax.Array | None:
    """Where the chosen heads stand, or numbers of the last axis; None: everywhere."""
    if chosen is None:
        return None
    # (B, T, N, H), or of attention weights (B, N, T, S)
    axis = 1 if site.endswith(OF_PATTERNS) else 2
    size = shape[axis]
    if wrong := [one for one in chosen if not 0 <= one < size]:
        raise UserError(f"{site}: {wrong[0]} is not there; expected numbers from 0 to {size - 1}")
    there = jnp.isin(jnp.arange(size), jnp.array(list(chosen), jnp.int32))
    return there.reshape((-1,) + (1,) * (len(shape) - 1 - axis))


def _means(model: Model, over, parts) -> dict[str, jax.Array]:
    if wrong := [site for site in parts if site.endswith(OF_PATTERNS)]:
        raise UserError(f"{wrong[0]}: attention weights of different texts have no mean; expected how='zero'")
    rows = read(model, over)
    found = capture(model, rows, list(parts))
    means = {}
    for site, x_BT in found.items():
        lengths_B = rows.lengths_at(site)
        weights_BT = (np.arange(x_BT.shape[1]) < lengths_B[:, None]) / lengths_B.sum()
        means[site] = jnp.einsum("BT...,BT->...", x_BT, weights_BT.astype(np.float32))
    return means


def _drawn(model: Model, over, rows: Read, seed: int) -> Read:
    """For each row another text's first tokens, as many as the rows have, and that text's source."""
    others = read(model, over)
    B, T = rows.tokens.shape
    lengths = others.lengths_at(LOGITS)
    enough = np.flatnonzero(lengths >= T)
    if not len(enough):
        raise UserError(f"over: its longest text has {lengths.max()} tokens; expected one of {T} or more")
    which_B = np.random.default_rng(seed).choice(enough, B)
    source, source_lengths = (None if x is None else np.asarray(x)[which_B] for x in others[2:])
    return Read(np.asarray(others.tokens)[which_B, :T], None, source, source_lengths)


def _loss(logits_BTV: jax.Array, rows: Read) -> float:
    tokens_BT = jnp.asarray(rows.tokens)
    B, T = tokens_BT.shape
    lengths_B = jnp.full(B, T) if rows.lengths is None else jnp.asarray(rows.lengths)
    weights_BT = (jnp.arange(1, T) < lengths_B[:, None]).astype(jnp.float32)
    return float(cross_entropy(logits_BTV[:, :-1], tokens_BT[:, 1:], weights_BT).mean())
