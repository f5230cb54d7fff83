"""What each token of a text gives to a logit, by the gradient of that logit over the token embeddings."""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.batching import Text
from lmjax.errors import UserError
from lmjax.interpret.attribution import Attribution, check_slopes, place_of, token_of
from lmjax.interpret.capture import ENCODER, Model, Read, forward, read
from lmjax.interpret.residual import read_out, stream
from lmjax.models.config import ModelConfig
from lmjax.models.tap import Patch

EMBED = "hook_embed"
Baseline = Literal["zero", "mean"]
# of the first steps of a path that are equal, before those are split between which most is missing
EQUAL = 0.25
# of the path: a logit that jumps, as where a token changes its expert, does so however close one looks
SHORTEST = 1e-6


def gradient_times_input(
    model: Model, text: Text | jax.Array | Read, *, position: int | None = None, target: int | str | None = None,
    row: int = 0, source: Text | jax.Array | None = None,
) -> Attribution:  # fmt: skip
    """The embedding of each token times the gradient of the logit there: to first order what the logit would lose
    without it. `total` is what it loses without all of them; the rest as `integrated_gradients`."""
    way, place, target, names = _way(model, text, source, row, position, target, "zero")
    values = np.concatenate(jax.device_get(way.shares(1.0)))
    return Attribution(names, values, way.logit(1.0) - way.logit(0.0), place, target)


def integrated_gradients(
    model: Model, text: Text | jax.Array | Read, *, position: int | None = None, target: int | str | None = None,
    steps: int = 32, baseline: Baseline = "mean", row: int = 0, source: Text | jax.Array | None = None,
) -> Attribution:  # fmt: skip
    """The gradient's mean over the straight path from a baseline to the text's embeddings, times their difference
    (Sundararajan et al., arXiv:1703.01365, eq. 1): (T,) shares of the logit of `target` at that position, less that of
    the baseline, which is `total`. By the midpoint rule with so many gradients; `error` says how far the shares are
    from adding up, which more steps make less. Of an encoder-decoder the source's tokens come first. Positions and
    types of tokens stay.

    target: an id, a text of one token, or of a model of labels the number or name of one; None: the most probable one.
    position: see `place_of`. baseline: the mean embedding of all tokens, or zeros; from zeros a model whose first norm
    sees nothing else turns small embeddings into large ones almost at once, and needs more steps. Raises UserError for
    another row, position, target or baseline, for weights of int8, and as `capture.read`."""
    if steps < 1:
        raise UserError(f"steps is {steps}; expected 1 or more")
    if baseline not in ("zero", "mean"):
        raise UserError(f"baseline {baseline!r}: expected zero or mean")
    way, place, target, names = _way(model, text, source, row, position, target, baseline)
    first = max(1, round(steps * EQUAL))
    ends = np.arange(first + 1) / first
    logits = [way.logit(end) for end in ends]
    spans = [Span(*ends[i : i + 2], *logits[i : i + 2], way.middle(*ends[i : i + 2])) for i in range(first)]
    for _ in range((steps - first) // 2):
        worst = max(spans, key=lambda span: span.missing)
        if worst.missing == 0:
            break
        spans.remove(worst)
        spans += _split(worst, way)
    return Attribution(names, sum(span.shares for span in spans), logits[-1] - logits[0], place, target)


@dataclass(frozen=True, eq=False)
class Span:
    """A part of the path. before, after: the logit at its ends. shares: (T,) by the gradient in its middle."""

    start: float
    stop: float
    before: float
    after: float
    shares: np.ndarray

    @property
    def missing(self) -> float:
        """By how much the shares do not add up; 0 where it is too short to be split."""
        if self.stop - self.start < SHORTEST:
            return 0.0
        return abs(self.after - self.before - float(self.shares.sum()))


class Way(NamedTuple):
    """A straight path to a text's embeddings. starts, steps: by site, where it begins and what is added on it. place,
    target: of the logit."""

    cfg: ModelConfig
    params: dict
    rows: Read
    starts: dict[str, jax.Array]
    steps: dict[str, jax.Array]
    place: int
    target: int

    def logit(self, at: float) -> float:
        """Where that part of the way is done."""
        return float(_logit(*self, at))

    def shares(self, at: float) -> list[jax.Array]:
        """Of each side's tokens, the gradient there times all that is added on the way."""
        return _shares(*self, at)

    def middle(self, start: float, stop: float) -> np.ndarray:
        """(T,), of a part of the way by the gradient in its middle."""
        shares = jax.device_get(self.shares((start + stop) / 2))
        return np.concatenate(shares).astype(np.float64) * (stop - start)


def _split(span: Span, way: Way) -> list[Span]:
    """In three equal parts: the one between has the same middle."""
    third = (span.stop - span.start) / 3
    left, right = span.start + third, span.stop - third
    of_left, of_right = way.logit(left), way.logit(right)
    return [
        Span(span.start, left, span.before, of_left, way.middle(span.start, left)),
        Span(left, right, of_left, of_right, span.shares / 3),
        Span(right, span.stop, of_right, span.after, way.middle(right, span.stop)),
    ]


def _way(model: Model, text, source, row: int, position, target, baseline: Baseline):
    """(the Way, its place, its target, the names of its tokens)."""
    check_slopes(model)
    cfg, rows = model.cfg, read(model, text, source)
    place = place_of(model, rows, row, position)
    rows = _alone(rows, row)
    sites = ((ENCODER + EMBED,) if cfg.encoder_layers else ()) + (EMBED,)
    found = forward(cfg, model.params, rows, (*sites, stream(cfg)[-1]), {})
    last_BTD = found.pop(stream(cfg)[-1])
    target = int(jnp.argmax(read_out(cfg, model.params, last_BTD[:, place]))) if target is None else target
    target = token_of(model, target)
    start_D = jnp.zeros(cfg.width)
    if baseline == "mean":
        # scaled as the tokens' own are
        start_D = model.params["embedding"].mean(axis=0) * (cfg.width**0.5 if cfg.scaled_embedding else 1.0)
    starts = {site: jnp.broadcast_to(start_D.astype(found[site].dtype), found[site].shape) for site in sites}
    steps = {site: found[site] - starts[site] for site in sites}
    ids = [int(i) for side in (rows.source, rows.tokens) if side is not None for i in side[0]]
    names = tuple(str(i) if model.tokenizer is None else model.tokenizer.decode([i]) for i in ids)
    return Way(cfg, model.params, rows, starts, steps, place, target), place, target, names


def _alone(rows: Read, row: int) -> Read:
    """One text, without what fills up its row."""

    def cut(tokens_BT, lengths_B):
        if tokens_BT is None:
            return None
        return np.asarray(tokens_BT)[row : row + 1, : None if lengths_B is None else int(lengths_B[row])]

    return Read(cut(rows.tokens, rows.lengths), None, cut(rows.source, rows.source_lengths), None)


@partial(jax.jit, static_argnames="cfg")
def _logit(cfg: ModelConfig, params, rows: Read, starts: dict, steps: dict, place, target, at) -> jax.Array:
    return _of_embeddings(cfg, params, rows, place, target, _there(starts, steps, at))


@partial(jax.jit, static_argnames="cfg")
def _shares(cfg: ModelConfig, params, rows: Read, starts: dict, steps: dict, place, target, at) -> list[jax.Array]:
    slopes = jax.grad(partial(_of_embeddings, cfg, params, rows, place, target))(_there(starts, steps, at))
    # JAX sorts a dict that it returns, and so the encoder's is the first
    return [jnp.sum(steps[site].astype(jnp.float32) * slopes[site], axis=-1)[0] for site in sorted(steps)]


def _there(starts: dict, steps: dict, at) -> dict[str, jax.Array]:
    return {site: starts[site] + (at * step).astype(step.dtype) for site, step in steps.items()}


def _of_embeddings(cfg: ModelConfig, params, rows: Read, place, target, there: dict[str, jax.Array]) -> jax.Array:
    """The logit, where these are the embeddings."""
    last = stream(cfg)[-1]
    found = forward(cfg, params, rows, (last,), {site: Patch(x) for site, x in there.items()})
    return read_out(cfg, params, found[last][0, place])[target]
