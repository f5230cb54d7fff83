"""The next token from its logits. All settings are traced, so that changing them compiles nothing."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lmjax.errors import UserError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Choice:
    """How a token is chosen. temperature 0: the most probable. top_k: only among so many (0: no limit). top_p: only
    among the most probable that together reach this probability (arXiv:1904.09751). min_p: only those with at least
    this share of the highest probability (arXiv:2407.01082). The limits look at the distribution after temperature."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array


def choice(*, temperature=0.0, top_k: int | None = None, top_p: float = 1.0, min_p: float = 0.0) -> Choice:
    """A Choice from plain numbers. Raises UserError where one is out of range."""
    if not 0 <= temperature <= 1e30:
        raise UserError(f"temperature is {temperature}; expected 0 or more, up to 1e30")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k is {top_k}; expected a positive number")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}; expected a number above 0, up to 1")
    if not 0 <= min_p <= 1:
        raise UserError(f"min_p is {min_p}; expected a number from 0 to 1")
    return Choice(
        jnp.float32(temperature), jnp.int32(min(top_k or 0, 2**31 - 1)), jnp.float32(top_p), jnp.float32(min_p)
    )


def limited(logits_BV: jax.Array, how: Choice) -> jax.Array:
    """Logits after temperature, with -inf where a limit shuts a token out; the most probable always stays."""
    V = logits_BV.shape[-1]
    logits_BV = logits_BV / jnp.maximum(how.temperature, 1e-6)
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    kth = jnp.where(how.top_k > 0, jnp.clip(how.top_k, 1, V), V) - 1
    floor_B1 = jnp.take(sorted_BV, kth[None], axis=-1)
    probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
    inside_BV = (before_BV < how.top_p) | (how.top_p >= 1)
    floor_p_B1 = jnp.min(jnp.where(inside_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    floor_min_B1 = sorted_BV[:, :1] + jnp.log(how.min_p)
    floor_B1 = jnp.maximum(jnp.maximum(floor_B1, floor_p_B1), floor_min_B1)
    return jnp.where(logits_BV >= jnp.minimum(floor_B1, sorted_BV[:, :1]), logits_BV, -jnp.inf)


def next_token(logits_BV: jax.Array, how: Choice, keys_B: jax.Array) -> jax.Array:
    """One token a row, each row by its own key."""

    def draw():
        return jax.vmap(jax.random.categorical)(keys_B, limited(logits_BV, how))

    # sorting a large vocabulary takes longer than the rest of a step: greedy must not pay for it
    return jax.lax.cond(how.temperature > 0, draw, lambda: jnp.argmax(logits_BV, axis=-1)).astype(jnp.int32)
