"""Attention patterns, and heads that are known by where they look: at the token before, at earlier places of the same
token, and at what came after these, which continues a text that repeats itself (Olsson et al., arXiv:2209.11895)."""

import jax
import jax.numpy as jnp
import numpy as np

from lmjax import checkpoint
from lmjax.batching import Text
from lmjax.errors import UserError, path_text
from lmjax.interpret.attribution import place_of
from lmjax.interpret.capture import Model, Read, forward, read
from lmjax.language_model import load
from lmjax.loaded import resolve
from lmjax.places import Place
from lmjax.run_directory import RunDirectory

# tokens that are repeated, unless a caller says or the model's context has less room
REPEATED = 50


def patterns(
    model: Model, text: Text | jax.Array | Read, *, source: Text | jax.Array | None = None, row: int = 0
) -> np.ndarray:
    """(L, N, T, S), the weights of each head's attention within one text, which sum to 1 over S; padding is cut off.
    Of an encoder-decoder, the decoder's. Raises UserError for another row, and as `capture.read`."""
    rows = read(model, text, source)
    length = place_of(model, rows, row, -1) + 1
    return np.asarray(_patterns(model, rows)[:, row, :, :length, :length])


def _patterns(model: Model, rows: Read) -> jax.Array:
    """(L, B, N, T, S)."""
    names = tuple(f"blocks.{i}.attn.hook_pattern" for i in range(model.cfg.layers))
    found = forward(model.cfg, model.params, rows, names, {})
    return jnp.stack([found[name] for name in names])


def head_scores(model: Model, *, tokens: int | None = None, rows: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    """`scores_of_text` of rows of random tokens, each row said twice, behind BOS where the model has one. tokens: so
    many before they are repeated; None: 50, or what there is room for. An encoder reads the same. Raises UserError
    where that is longer than the model's context, and for fewer than one token or row."""
    cfg, tokenizer = model.cfg, model.tokenizer
    bos = [] if tokenizer is None or tokenizer.policy.bos is None else [tokenizer.policy.bos]
    if tokens is None:
        tokens = min(REPEATED, (cfg.context - len(bos)) // 2)
    if tokens < 1 or rows < 1:
        raise UserError(f"{rows} rows of {tokens} tokens said twice: expected 1 or more of both")
    known = cfg.vocab if tokenizer is None else tokenizer.vocab_size
    rng = np.random.default_rng(seed)
    # of tokens that are all different, where there are so many, each has one right place
    once = np.stack([rng.choice(known, tokens, replace=tokens > known) for _ in range(rows)])
    ids_BT = np.concatenate([np.tile(bos, (rows, 1)).astype(np.int32), once, once], axis=1).astype(np.int32)
    return scores_of_text(model, ids_BT, source=ids_BT if cfg.encoder_layers else None)


def scores_of_text(
    model: Model, text: Text | jax.Array | Read, *, source: Text | jax.Array | None = None
) -> dict[str, np.ndarray]:
    """{"previous", "duplicate", "induction"}: (L, N), how much of its attention a head pays to the right places, from 0
    to 1, mean over the tokens that have any. Right is the place before; earlier ones of the same token; and those
    behind these. TransformerLens's head_detector.py divides the same sums by all tokens (error_measure="mul"). nan
    where no token has any. Raises UserError as `capture.read`."""
    rows = read(model, text, source)
    pattern_LBNTS = _patterns(model, rows)
    return {name: np.asarray(_score(pattern_LBNTS, right_BTS)) for name, right_BTS in right_places(rows).items()}


def right_places(rows: Read) -> dict[str, np.ndarray]:
    """For each kind of head the places (B, T, S) where it is to look."""
    tokens_BT = np.asarray(rows.tokens)
    B, T = tokens_BT.shape
    earlier_TS = np.tri(T, k=-1, dtype=bool)
    same_BTS = (tokens_BT[:, :, None] == tokens_BT[:, None]) & earlier_TS
    behind_BTS = np.concatenate([np.zeros((B, T, 1), bool), same_BTS[:, :, :-1]], axis=2)
    right = {
        "previous": np.broadcast_to(np.eye(T, k=-1, dtype=bool), (B, T, T)),
        "duplicate": same_BTS,
        "induction": behind_BTS,
    }
    if rows.lengths is None:
        return right
    there_BT = np.arange(T) < np.asarray(rows.lengths)[:, None]
    return {name: right_BTS & there_BT[:, :, None] for name, right_BTS in right.items()}


@jax.jit
def _score(pattern_LBNTS: jax.Array, right_BTS: jax.Array) -> jax.Array:
    mass_LN = jnp.einsum("LBNTS,BTS->LN", pattern_LBNTS, right_BTS.astype(pattern_LBNTS.dtype))
    return mass_LN / right_BTS.any(axis=-1).sum()


def induction_over_training(run: Place | str, *, seed: int = 0) -> list[tuple[int, np.ndarray]]:
    """(step, the induction scores (L, N) of `head_scores`) of every checkpoint that a run keeps, in order. Raises
    UserError where there is none, and for one that is damaged."""
    directory = RunDirectory(resolve(run))
    steps = sorted(checkpoint.manifests(directory.checkpoints))
    if not steps:
        raise UserError(f"{path_text(directory.path)}: it has no checkpoint")
    return [(step, head_scores(load(directory.path, step=step), seed=seed)["induction"]) for step in steps]
