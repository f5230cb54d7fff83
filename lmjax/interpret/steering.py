"""Vectors that steer what a model writes: the difference that texts of two kinds make at a site, added there
(arXiv:2308.10248; arXiv:2312.06681)."""

from collections.abc import Mapping
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.batching import Reader, Text
from lmjax.errors import UserError, path_text
from lmjax.generate.decode import check_ids, padded_length, row_keys, turns, without_stops
from lmjax.generate.sampling import Choice, choice, next_token
from lmjax.interpret.capture import LOGITS, Model, Read, capture, fitting, read
from lmjax.models import transformer
from lmjax.models.cache import empty_cache
from lmjax.models.config import ModelConfig
from lmjax.models.positions import in_rows
from lmjax.models.tap import OF_PATTERNS, Patch
from lmjax.tokenizers.sides import prompt_ids

Position = int | Literal["mean"]


def at_position(model: Model, texts: Text | jax.Array | Read, site: str, position: Position = -1) -> jax.Array:
    """(B, ...): what stands at the site at one place of each text (-1: its last token), or the mean over its tokens.
    texts: as `capture` reads them. Raises UserError for a place that a text does not have, and as `capture`."""
    rows = read(model, texts)
    x_BT = capture(model, rows, site)
    if site not in x_BT or site.endswith(OF_PATTERNS) or site == LOGITS:
        raise UserError(f"{site}: expected one site with a vector for each token")
    x_BT = x_BT[site]
    B, T = x_BT.shape[:2]
    lengths_B = rows.lengths_at(site)
    if position == "mean":
        there_BT = (np.arange(T) < lengths_B[:, None]).astype(np.float32)
        return jnp.einsum("BT...,BT->B...", x_BT, there_BT / lengths_B[:, None])
    if not isinstance(position, int):
        raise UserError(f"position is {position!r}; expected a number or 'mean'")
    shortest = int(lengths_B.min())
    if not -shortest <= position < shortest:
        raise UserError(f"position is {position}, and the shortest text has {shortest} tokens")
    return x_BT[np.arange(B), position if position >= 0 else lengths_B + position]


def steering_vector(
    model: Model, positive: Text | jax.Array | Read, negative: Text | jax.Array | Read, site: str,
    position: Position = -1,
) -> jax.Array:  # fmt: skip
    """What stands at the site in the mean over the positive texts, less that over the negative ones. position and
    errors: `at_position`. `Patch(added=strength * vector)` steers by it."""
    means = [at_position(model, texts, site, position).mean(axis=0) for texts in (positive, negative)]
    return means[0] - means[1]


def generate_with(
    model: Model, prompt: Text, patches: Mapping[str, Patch], *, max_new_tokens: int = 20, temperature: float = 0.0,
    top_k: int | None = None, top_p: float = 1.0, min_p: float = 0.0, seed: int = 0,
) -> str | list[str] | list[np.ndarray]:  # fmt: skip
    """As `LanguageModel.generate`, with these patches at every token, of the prompt and of what is written: a patch's
    parts are the same for each place, such as a vector (D,), or (B, 1, D). Raises UserError where one is not, for
    attention weights, a model that writes no text after a prompt, and as `generate` and `patch`."""
    cfg = model.cfg
    if not cfg.causal or cfg.outputs or cfg.encoder_layers:
        raise UserError(f"{path_text(model.path)}: expected a model of the next token, of one stack of layers")
    how = choice(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    reader = Reader(cfg, model.tokenizer, model.path)
    olds = reader.rows(prompt, prompt_ids)
    for old in olds:
        check_ids(cfg, [old], max_new_tokens)
    tokens_BT, lengths_B = reader.filled_up(olds)
    if wrong := [site for site in patches if site.endswith(OF_PATTERNS)]:
        raise UserError(
            f"{wrong[0]}: attention weights are not changed while text is written; hook_z and hook_v can be"
        )
    # what fits one place is the same at all
    patches = fitting(model, Read(tokens_BT[:, :1]), patches)
    stops, known = reader.writing.get("stops", ()), reader.writing.get("known", cfg.vocab)
    keys_B = row_keys(olds, turns(olds), seed)
    ends = np.array([*stops, -1], np.int32)
    room = padded_length(tokens_BT.shape[1] + max_new_tokens, cfg.context)
    out_BS, counts_B = _write(
        cfg, transformer.apart(model.params), reader.padded(tokens_BT), lengths_B, patches, jnp.int32(max_new_tokens),
        jnp.int32(known), ends, how, keys_B, room,
    )  # fmt: skip
    news = without_stops(np.asarray(out_BS), np.asarray(counts_B), tuple(stops))
    return reader.as_asked(prompt, [np.concatenate(both) for both in zip(olds, news, strict=True)])


@partial(jax.jit, static_argnames=("cfg", "room"))
def _write(
    cfg: ModelConfig, params, tokens_BT, lengths_B, patches, limit, known, stops, how: Choice, keys_B, room: int
):  # fmt: skip
    """(new tokens (B, S), how many of each row), as `decode` writes them."""
    B = len(tokens_BT)
    matrix_VD = transformer.unembedding(cfg, params)

    def choose(hidden_BD, index):
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, index)
        logits_BV = transformer.logits(matrix_VD, hidden_BD, cfg.logit_cap)
        return next_token(jnp.where(jnp.arange(cfg.vocab) < known, logits_BV, -jnp.inf), how, keys)

    def step(carry):
        index, cache, token_B, out_BS, counts_B, done_B = carry
        out_BS = out_BS.at[:, index].set(jnp.where(done_B, 0, token_B))
        counts_B = counts_B + ~done_B
        done_B = done_B | jnp.isin(token_B, stops)
        # a row that is done writes outside the cache, where it is dropped
        at_B1 = jnp.where(done_B, room, lengths_B + index)[:, None]
        hidden_B1D, cache = transformer.hidden(cfg, params, token_B[:, None], at_B1, cache=cache, patches=patches)
        return index + 1, cache, choose(hidden_B1D[:, 0], index + 1), out_BS, counts_B, done_B

    positions_BT, _ = in_rows(tokens_BT)
    cache = empty_cache(cfg, B, room, stacked=False)
    hidden_BTD, cache = transformer.hidden(cfg, params, tokens_BT, positions_BT, cache=cache, patches=patches)
    first_B = choose(hidden_BTD[jnp.arange(B), lengths_B - 1], 0)
    nothing = jnp.zeros((B, room), jnp.int32), jnp.zeros(B, jnp.int32), jnp.zeros(B, bool)
    carry = jax.lax.while_loop(
        lambda carry: (carry[0] < limit) & ~jnp.all(carry[-1]), step, (0, cache, first_B, *nothing)
    )
    return carry[3], carry[4]
