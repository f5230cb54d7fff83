"""Reading prompts and writing on: `prefill` and `decode`, two compiled functions around a cache.

Prompts are padded on the right and read a chunk at a time, so prompts of any lengths run the same two programs. A
row's slot in the cache is its position; padding writes into slots that the row overwrites before it reads them.
"""

import zlib
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.errors import UserError
from lmjax.generate.sampling import Choice, next_token
from lmjax.models import transformer
from lmjax.models.cache import LayerCache, empty_cache, slots
from lmjax.models.config import ModelConfig
from lmjax.models.positions import in_rows

# what a chunk of padding costs on a CPU, which computes it, and on others, which wait for memory
CHUNK_ON_CPU, CHUNK = 32, 256
# texts up to this length share one program; longer ones need another for each doubling
SLOTS = 1024
# and sources, and texts that are read without a cache
SHORTEST = 64


@partial(jax.jit, static_argnames="cfg", donate_argnames=("cache", "last_BD"))
def prefill(cfg: ModelConfig, params, tokens_BC, start, lengths_B, cache: LayerCache, last_BD):
    """Read one chunk that begins at position `start`: (cache, last_BD), where last_BD becomes the hidden vector of
    a row's last token once the chunk holds it."""
    C = tokens_BC.shape[1]
    positions_BC = jnp.broadcast_to(start + jnp.arange(C), tokens_BC.shape)
    hidden_BCD, cache = transformer.hidden(cfg, params, tokens_BC, positions_BC, cache=cache)
    at_B = lengths_B - 1 - start
    here_BD = jnp.take_along_axis(hidden_BCD, jnp.clip(at_B, 0, C - 1)[:, None, None], axis=1)[:, 0]
    return cache, jnp.where(((at_B >= 0) & (at_B < C))[:, None], here_BD, last_BD)


@partial(jax.jit, static_argnames="cfg", donate_argnames="cache")
def decode(
    cfg: ModelConfig, params, cache: LayerCache, last_BD, lengths_B, limits_B, known, stops, how: Choice, keys_B
):
    """Write on until every row has reached its limit (a number of new tokens) or one of the tokens `stops`. Ids from
    `known` up, with which a vocabulary was filled up, are never chosen.

    Returns (tokens_BS, counts_B, cache): the new tokens of each row, S slots of the cache, and how many there are; a
    stop that was written is among them, and what follows it is 0. The cache is given back so that it is never copied.
    """
    matrix_VD = transformer.unembedding(cfg, params)
    B, S = last_BD.shape[0], slots(cache)

    def choose(last_BD, index):
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, index)
        logits_BV = transformer.logits(matrix_VD, last_BD, cfg.logit_cap)
        return next_token(jnp.where(jnp.arange(cfg.vocab) < known, logits_BV, -jnp.inf), how, keys)

    def record(token_B, index, out_BS, counts_B, done_B):
        out_BS = out_BS.at[:, index].set(jnp.where(done_B, 0, token_B))
        counts_B = counts_B + ~done_B
        return out_BS, counts_B, done_B | jnp.isin(token_B, stops) | (counts_B >= limits_B)

    def go_on(carry):
        return ~jnp.all(carry[-1])

    def write(carry):
        index, cache, token_B, out_BS, counts_B, done_B = carry
        # a row that is done writes outside the cache, where it is dropped
        position_B1 = jnp.where(done_B, S, lengths_B + index)[:, None]
        hidden_B1D, cache = transformer.hidden(cfg, params, token_B[:, None], position_B1, cache=cache)
        token_B = choose(hidden_B1D[:, 0], index + 1)
        return index + 1, cache, token_B, *record(token_B, index + 1, out_BS, counts_B, done_B)

    first_B = choose(last_BD, 0)
    start = record(first_B, 0, jnp.zeros((B, S), jnp.int32), jnp.zeros(B, jnp.int32), limits_B <= 0)
    _, cache, _, out_BS, counts_B, _ = jax.lax.while_loop(go_on, write, (0, cache, first_B, *start))
    return out_BS, counts_B, cache


def turns(prompts: list[np.ndarray]) -> list[int]:
    """How often the same prompt came before in the list, of each."""
    seen, found = Counter(), []
    for prompt in prompts:
        found.append(seen[_number(prompt)])
        seen[_number(prompt)] += 1
    return found


def _number(prompt: np.ndarray) -> int:
    return zlib.crc32(np.asarray(prompt, np.int64).tobytes())


def row_keys(prompts: list[np.ndarray], turns_B: list[int], seed: int) -> jax.Array:
    """A key for each row, from the seed, the prompt and its turn: so a row's text does not depend on what else is in
    the batch."""
    numbers = jnp.array([(_number(prompt), turn) for prompt, turn in zip(prompts, turns_B, strict=True)], jnp.uint32)
    fold = jax.vmap(lambda pair: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), pair[0]), pair[1]))
    return fold(numbers)


@partial(jax.jit, static_argnames="cfg", donate_argnames="cache")
def read_source(cfg: ModelConfig, params, tokens_BS, lengths_B, cache):
    """The cache with the source that the encoder reads; rows are filled up on the right."""
    source = transformer.encode(cfg, params, tokens_BS, *in_rows(tokens_BS, lengths_B))
    return transformer.with_source(cfg, params, cache, source)


def filled_up(rows: list[np.ndarray], multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(tokens (B, T), lengths (B,)): rows filled up on the right with 0, T a multiple of that number."""
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens_BT = np.zeros((len(rows), -(-int(lengths.max()) // multiple) * multiple), np.int32)
    for filled, row in zip(tokens_BT, rows, strict=True):
        filled[: len(row)] = row
    return tokens_BT, lengths


def padded_length(length: int, longest: int, *, shortest: int = SHORTEST) -> int:
    """One of few lengths, so that others compile nothing: `shortest` times a power of two, at most `longest`."""
    padded = shortest
    while padded < length:
        padded *= 2
    return min(padded, longest)


def padded(tokens_BT: np.ndarray, longest: int, *, shortest: int = SHORTEST) -> np.ndarray:
    """Rows filled up on the right with 0 to such a length."""
    T = tokens_BT.shape[1]
    return np.pad(tokens_BT, ((0, 0), (0, padded_length(T, longest, shortest=shortest) - T)))


def check_ids(cfg: ModelConfig, prompts: list[np.ndarray], max_new_tokens: int) -> None:
    """Raises UserError for an empty prompt, an id outside the vocabulary, a prompt that leaves no room for
    max_new_tokens in the model's context."""
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens is {max_new_tokens}; expected 0 or more")
    for prompt in prompts:
        if not len(prompt):
            raise UserError("the prompt is empty, and the tokenizer has no BOS to begin with: give a prompt")
        if len(prompt) + max_new_tokens > cfg.context:
            raise UserError(
                f"prompt of {len(prompt)} tokens + {max_new_tokens} new tokens = {len(prompt) + max_new_tokens}, "
                f"more than the model's context of {cfg.context}"
            )
        wrong = [index for index in (np.min(prompt), np.max(prompt)) if not 0 <= index < cfg.vocab]
        if wrong:
            raise UserError(f"token id {wrong[0]} is outside the model's vocabulary of {cfg.vocab}")


def begun(
    cfg: ModelConfig, params, prompts: list[np.ndarray], max_new_tokens: int | np.ndarray,
    sources: list[np.ndarray] | None,
):  # fmt: skip
    """(cache, hidden vectors of the prompts' last tokens, their lengths, how many tokens each may get): what writing on
    starts from. max_new_tokens: of all, or (B,). sources: one for each prompt, of a decoder that has an encoder. Raises
    UserError as `check_ids`."""
    B = len(prompts)
    limits = np.broadcast_to(np.asarray(max_new_tokens, np.int32), B)
    for prompt, limit in zip(prompts, limits.tolist(), strict=True):
        check_ids(cfg, [prompt], limit)
    # where the last chunk reaches beyond the cache, that part is padding, and the cache drops it
    chunk = min(CHUNK_ON_CPU if jax.default_backend() == "cpu" else CHUNK, cfg.context)
    tokens_BT, lengths = filled_up(prompts, chunk)
    room = padded_length(int((lengths + limits).max()), cfg.context, shortest=SLOTS)
    cache = empty_cache(cfg, B, room, stacked=not isinstance(params["blocks"], tuple))
    if sources is not None:
        check_ids(cfg, sources, 0)
        tokens_BS, source_lengths = filled_up(sources)
        cache = read_source(cfg, params, padded(tokens_BS, cfg.context), source_lengths, cache)
    last_BD = jnp.zeros((B, cfg.width), cfg.dtype)
    for start in range(0, tokens_BT.shape[1], chunk):
        cache, last_BD = prefill(
            cfg, params, tokens_BT[:, start : start + chunk], jnp.int32(start), lengths, cache, last_BD
        )
    return cache, last_BD, lengths, limits


def generate(
    cfg: ModelConfig, params, prompts: list[np.ndarray], *, max_new_tokens: int | np.ndarray, how: Choice,
    seed: int = 0, stops: tuple[int, ...] = (), known: int | None = None, sources: list[np.ndarray] | None = None,
    turns_B: list[int] | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """The new tokens of each prompt, without the prompt; up to max_new_tokens, of all or of each, up to one of `stops`
    (not included). known: how many ids the tokenizer has, where the model's vocabulary is larger. sources: see `begun`.
    turns_B: see `turns`; None: as these prompts are all. Raises UserError as `check_ids`."""
    cache, last_BD, lengths, limits = begun(cfg, params, prompts, max_new_tokens, sources)
    # padded, so that other stops compile nothing
    padded_stops = np.full(max(8, len(stops)), -1, np.int32)
    padded_stops[: len(stops)] = stops
    texts = prompts if sources is None else sources
    keys = row_keys(texts, turns(texts) if turns_B is None else turns_B, seed)
    out_BS, counts_B, _ = decode(
        cfg, params, cache, last_BD, lengths, limits, jnp.int32(known or cfg.vocab), padded_stops, how, keys
    )
    return without_stops(*jax.device_get((out_BS, counts_B)), stops)


def without_stops(tokens_BS: np.ndarray, counts_B: np.ndarray, stops: tuple[int, ...]) -> list[np.ndarray]:
    """Each row's own tokens, without the stop that ended it."""
    rows = [row[:count] for row, count in zip(tokens_BS, counts_B, strict=True)]
    return [row[:-1] if len(row) and row[-1] in stops else row for row in rows]
