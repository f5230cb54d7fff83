"""Beam search: the K most probable beginnings of each row are written on, and the best text that ended is given.

The rules are those of transformers' `_beam_search` (generation/utils.py, 5.24), so that texts and scores are the same:
of the K x V continuations of a row the best ones are looked at, those of the first K that end are kept as finished,
the best K that do not end go on. A finished text's score is its log-probability over its length to the power of the
length penalty (arXiv:1609.08144, eq. 14, is another such).
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.errors import UserError
from lmjax.generate.decode import begun, generate, without_stops
from lmjax.generate.sampling import Choice, choice
from lmjax.models import transformer
from lmjax.models.cache import slots, taken
from lmjax.models.config import ModelConfig

# of what is not to be chosen
NEVER = -1.0e9
# each has a cache of its own
BEAMS_LIMIT = 1000


@dataclass(frozen=True, kw_only=True)
class Beam:
    """beams: K. length_penalty: above 0 it favours long texts. early_stopping: when a row is done. True: as soon as K
    texts have ended; False: when none that goes on is better than the worst of K that ended, if it ended now; "never":
    the same, if it ended at the limit."""

    beams: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self):
        if self.beams < 1:
            raise UserError(f"beams is {self.beams}; expected a positive number")
        if self.beams > BEAMS_LIMIT:
            raise UserError(f"beams is {self.beams}; expected at most {BEAMS_LIMIT}")
        if not np.isfinite(self.length_penalty):
            raise UserError(f"length_penalty is {self.length_penalty}; expected a number")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise UserError(f"early_stopping is {self.early_stopping!r}; expected True, False or 'never'")


class Texts(NamedTuple):
    """K texts of each row. tokens_BKS: new tokens. lengths_BK: how many. scores_BK: log-probabilities of those that go
    on, scores of those that ended, the best first. ended_BK: whether there is such a text."""

    tokens_BKS: jax.Array
    lengths_BK: jax.Array
    scores_BK: jax.Array
    ended_BK: jax.Array

    def at(self, places_BK: jax.Array) -> "Texts":
        """The texts at these places of each row."""
        return Texts(*(jax.vmap(lambda x, i: x[i])(x, places_BK) for x in self))


class State(NamedTuple):
    """open_B1: whether a row can still improve. more: whether any can go on."""

    index: jax.Array
    cache: object
    running: Texts
    finished: Texts
    open_B1: jax.Array
    more: jax.Array


@partial(jax.jit, static_argnames=("cfg", "beams", "early_stopping"))
def search(
    cfg: ModelConfig, params, cache, last_BD, lengths_B, limits_B, known, stops, beams: int, length_penalty,
    early_stopping,
):  # fmt: skip
    """(tokens_BS, counts_B, scores_B) of each row's best text: up to its limit, or with the stop that ended it. The
    rest as in `decode.decode`; stops: as many as there are."""
    matrix_VD = transformer.unembedding(cfg, params)
    limit_B1 = limits_B[:, None]
    B, S = len(last_BD), slots(cache)
    # enough that K go on even if all others end
    looked_at = min(max(2, 1 + len(stops)) * beams, beams * cfg.vocab)
    lengths_R = jnp.repeat(lengths_B, beams)

    def choose(state: State, last_RD) -> State:
        logits_RV = transformer.logits(matrix_VD, last_RD, cfg.logit_cap)
        logits_RV = jnp.where(jnp.arange(cfg.vocab) < known, logits_RV, -jnp.inf)
        log_p_BKV = jax.nn.log_softmax(logits_RV).reshape(B, beams, -1) + state.running.scores_BK[..., None]
        scores_BC, places_BC = jax.lax.top_k(log_p_BKV.reshape(B, -1), looked_at)
        parents_BC, token_BC = places_BC // cfg.vocab, places_BC % cfg.vocab
        length = state.index + 1
        ends_BC = jnp.isin(token_BC, stops) | (length >= limit_B1)
        tokens_BCS = state.running.at(parents_BC).tokens_BKS.at[:, :, state.index].set(token_BC)
        lengths_BC = jnp.full(token_BC.shape, length)
        candidates = Texts(tokens_BCS, lengths_BC, scores_BC, ends_BC)
        scores_BK, best_BK = jax.lax.top_k(scores_BC + NEVER * ends_BC, beams)
        running = candidates.at(best_BK)._replace(scores_BK=scores_BK)
        finished = _finished(state, candidates, beams, length_penalty, early_stopping)
        open_B1 = state.open_B1 & _can_improve(running, finished, length, limit_B1, length_penalty, early_stopping)
        more = jnp.any(open_B1) & ~jnp.all(ends_BC)
        if early_stopping is True:
            more = more & ~jnp.all(finished.ended_BK)
        rows_BK = jnp.take_along_axis(parents_BC, best_BK, axis=1) + beams * jnp.arange(B)[:, None]
        return State(length, taken(state.cache, rows_BK.reshape(-1)), running, finished, open_B1, more)

    def write(state: State) -> State:
        token_R1 = state.running.tokens_BKS[:, :, state.index - 1].reshape(-1, 1)
        positions_R1 = (lengths_R + state.index - 1)[:, None]
        hidden_R1D, cache = transformer.hidden(cfg, params, token_R1, positions_R1, cache=state.cache)
        return choose(state._replace(cache=cache), hidden_R1D[:, 0])

    # of K equal beginnings one counts
    first_BK = jnp.where(jnp.arange(beams) == 0, jnp.zeros((B, beams)), NEVER)
    nothing = Texts(
        jnp.zeros((B, beams, S), jnp.int32), jnp.zeros((B, beams), jnp.int32), first_BK, jnp.zeros((B, beams), bool)
    )
    rows_R = jnp.repeat(jnp.arange(B), beams)
    start = State(
        jnp.int32(0), taken(cache, rows_R), nothing, nothing._replace(scores_BK=jnp.full((B, beams), NEVER)),
        jnp.ones((B, 1), bool), jnp.bool_(True),
    )  # fmt: skip
    finished = jax.lax.while_loop(lambda state: state.more, write, choose(start, last_BD[rows_R])).finished
    return finished.tokens_BKS[:, 0], finished.lengths_BK[:, 0], finished.scores_BK[:, 0]


def _finished(state: State, candidates: Texts, beams: int, length_penalty, early_stopping) -> Texts:
    """The best K of the texts that have ended and those that end now."""
    among_first_C = jnp.arange(candidates.scores_BK.shape[1]) < beams
    ends_BC = candidates.ended_BK & among_first_C
    scores_BC = candidates.scores_BK / (state.index + 1).astype(jnp.float32) ** length_penalty
    if early_stopping is True:
        scores_BC = scores_BC + NEVER * jnp.all(state.finished.ended_BK, axis=1, keepdims=True)
    scores_BC = scores_BC + NEVER * ~state.open_B1 + NEVER * ~ends_BC
    now = candidates._replace(scores_BK=scores_BC, ended_BK=ends_BC)
    both = Texts(*(jnp.concatenate(pair, axis=1) for pair in zip(state.finished, now, strict=True)))
    return both.at(jax.lax.top_k(both.scores_BK, beams)[1])


def _can_improve(running: Texts, finished: Texts, length, limit_B1, length_penalty, early_stopping) -> jax.Array:
    """(B, 1): whether the best text that goes on could be better than the worst that ended."""
    at_best = length
    if early_stopping == "never":
        at_best = jnp.where(length_penalty > 0, limit_B1, length)
    best_B1 = running.scores_BK[:, :1] / at_best.astype(jnp.float32) ** length_penalty
    # nothing goes on beyond the limit
    best_B1 = jnp.where(length < limit_B1, best_B1, -jnp.inf)
    worst_BK = jnp.where(finished.ended_BK, finished.scores_BK.min(axis=1, keepdims=True), NEVER)
    return jnp.any(best_B1 > worst_BK, axis=1, keepdims=True)


def beam_search(
    cfg: ModelConfig, params, prompts: list[np.ndarray], how: Beam, *, max_new_tokens: int | np.ndarray,
    stops: tuple[int, ...] = (), known: int | None = None, sources: list[np.ndarray] | None = None,
) -> tuple[list[np.ndarray], np.ndarray]:  # fmt: skip
    """(the new tokens of each prompt's best text, their scores (B,)). Arguments and errors as `decode.generate`'s."""
    known = known or cfg.vocab
    cache, last_BD, lengths, limits = begun(cfg, params, prompts, max_new_tokens, sources)
    if not limits.all():
        if limits.any():
            raise ValueError("some prompts may get no token, and others may; expected all to, or none")
        return [np.zeros(0, np.int32) for _ in prompts], np.zeros(len(prompts), np.float32)
    tokens_BS, counts_B, scores_B = jax.device_get(
        search(
            cfg, params, cache, last_BD, lengths, limits, jnp.int32(known),
            np.array(stops, np.int32), how.beams, jnp.float32(how.length_penalty), how.early_stopping,
        )
    )  # fmt: skip
    return without_stops(tokens_BS, counts_B, stops), scores_B


def way(*, beams: int = 1, length_penalty: float = 1.0, early_stopping=False, **sampling) -> Choice | Beam:
    """A Beam for more than one, else what `sampling.choice` makes of the rest. Raises UserError for a setting out of
    range, and for one of the one kind beside one of the other."""
    chosen = choice(**sampling)
    how = Beam(beams=beams, length_penalty=length_penalty, early_stopping=early_stopping)
    if beams == 1:
        if length_penalty != 1.0 or early_stopping is not False:
            raise UserError(
                f"length_penalty is {length_penalty} and early_stopping {early_stopping}: beams is 1, no search"
            )
        return chosen
    if wrong := [name for name, value in sampling.items() if value not in (None, {"top_p": 1.0}.get(name, 0.0))]:
        raise UserError(f"beams is {beams}, and a beam search draws nothing: expected no {' and '.join(wrong)}")
    return how


def write(
    cfg: ModelConfig, params, prompts: list[np.ndarray], how: Choice | Beam, *, seed: int = 0, **settings
) -> list[np.ndarray]:
    """The new tokens of each prompt, by `beam_search` or `decode.generate`, which name the settings."""
    if isinstance(how, Beam):
        return beam_search(cfg, params, prompts, how, **settings)[0]
    return generate(cfg, params, prompts, how=how, seed=seed, **settings)
