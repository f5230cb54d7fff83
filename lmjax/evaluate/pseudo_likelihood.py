"""What a masked model says of tokens that it does not see: each hidden in turn, given all that stands around it.

The sum over the tokens of a text is its pseudo-log-likelihood (Salazar et al., arXiv:1910.14659).
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.compilation import program
from lmjax.errors import UserError
from lmjax.evaluate.likelihood import TOKENS, TOKENS_ON_CPU, row_lengths
from lmjax.evaluate.progress import followed
from lmjax.generate.decode import padded_length
from lmjax.masked_model import MaskedModel
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.models.positions import in_rows
from lmjax.sharding import place_batch
from lmjax.tokenizers.sides import source_ids


class Hidden(NamedTuple):
    """A text in which tokens are hidden. tokens: ids, with the mask in the place of each that is hidden. at: their
    places. targets: the ids whose probability is asked there; as many, one or more."""

    tokens: np.ndarray
    at: np.ndarray
    targets: np.ndarray


class _Batch(NamedTuple):
    """index: which texts the rows are; rows beyond them are padding."""

    index: np.ndarray
    tokens_BT: np.ndarray
    lengths_B1: np.ndarray
    at_BK: np.ndarray
    targets_BK: np.ndarray


def encode(model: MaskedModel, text: str) -> np.ndarray:
    """The ids of a text, with what the tokenizer puts around it. Raises UserError where they are more than the model's
    context."""
    ids = source_ids(text, model.tokenizer)
    if not 1 <= len(ids) <= model.cfg.context:
        raise UserError(f"{text[:40]!r} has {len(ids)} tokens; expected 1 to {model.cfg.context}, the model's context")
    return ids


def spaces_apart(model: MaskedModel) -> bool:
    """Whether the space before a word is a token of its own; elsewhere it belongs to the word's first token, or there
    is none."""
    return model.tokenizer.kind in ("Bytes", "Characters")


def protocol_of(model: MaskedModel) -> dict[str, str | int]:
    """What stands around a text, how much is read, in which numbers."""
    policy = model.tokenizer.policy
    around = [name for name, one in (("BOS", policy.bos), ("EOS", policy.eos)) if one is not None]
    told = f"{' and '.join(around)} around every text" if around else "nothing around a text"
    return {"start": told, "context": model.cfg.context, "dtype": model.cfg.dtype}


def hiding(model: MaskedModel, ids: np.ndarray, at: Sequence[int], targets: Sequence[int] | None = None) -> Hidden:
    """The text with all these places hidden at one time. targets: None: what stands there."""
    at = np.asarray(at, np.int32)
    hidden = np.array(ids, np.int32)
    hidden[at] = model.mask
    return Hidden(hidden, at, np.asarray(ids[at] if targets is None else targets, np.int32))


def one_by_one(model: MaskedModel, ids: np.ndarray, at: Sequence[int]) -> list[Hidden]:
    """The text as often as there are places, one of them hidden each time."""
    return [hiding(model, ids, [place]) for place in at]


def summed(model: MaskedModel, texts: Sequence[Sequence[Hidden]]) -> np.ndarray:
    """(N,): for each text the sum of log p over all that is hidden in its rows, in nats, float64; 0 where there is
    none. Raises UserError as `log_probabilities`."""
    found = log_probabilities(model, [row for rows in texts for row in rows])
    of_text = np.repeat(np.arange(len(texts)), [len(rows) for rows in texts])
    return np.bincount(of_text, [one.sum(dtype=np.float64) for one in found], minlength=len(texts))


def log_probabilities(model: MaskedModel, rows: Sequence[Hidden]) -> list[np.ndarray]:
    """log p of every target of each row, in nats, on the mesh in use, over whose devices the rows are shared;
    parameters must lie there. Raises UserError where the model gives NaN."""
    found: list = [None] * len(rows)
    waiting: deque = deque()

    def take(batch: _Batch, computed) -> None:
        for i, log_p_K in zip(batch.index, np.asarray(jax.device_get(computed), np.float64), strict=False):
            found[i] = log_p_K[: len(rows[i].at)]

    for batch in followed(_batches(rows, model.cfg.context), len(rows), lambda batch: len(batch.index)):
        mesh = jax.sharding.get_mesh()
        arrays = batch[1:] if mesh.empty else place_batch(batch[1:], mesh)
        waiting.append((batch, program(_log_p, model.cfg)(model.params, *arrays)))
        # the device computes one batch while the next is made
        if len(waiting) > 1:
            take(*waiting.popleft())
    for one in waiting:
        take(*one)
    if wrong := sum(not np.isfinite(one).all() for one in found):
        raise UserError(f"the model gives no finite likelihood to {wrong} of {len(rows)} texts with hidden tokens")
    return found


def _batches(rows: Sequence[Hidden], context: int) -> Iterator[_Batch]:
    """Rows of like lengths together, the longest first; lengths and numbers of places are padded to few sizes."""
    devices = max(1, jax.sharding.get_mesh().size)
    tokens = TOKENS_ON_CPU if jax.default_backend() == "cpu" else TOKENS
    lengths = row_lengths([len(row.tokens) for row in rows], context)
    widths = np.array([padded_length(len(row.at), context, shortest=1) for row in rows], int)
    for T, K in sorted({*zip(lengths.tolist(), widths.tolist(), strict=True)}, reverse=True):
        same = np.flatnonzero((lengths == T) & (widths == K))
        B = padded_length(-(-len(same) // devices), max(1, tokens // T), shortest=1) * devices
        for start in range(0, len(same), B):
            index = same[start : start + B]
            yield _batch(index, [rows[i] for i in index], (B, T, K))


def _batch(index: np.ndarray, rows: list[Hidden], shape: tuple[int, int, int]) -> _Batch:
    B, T, K = shape
    tokens_BT, lengths_B1 = np.zeros((B, T), np.int32), np.ones((B, 1), np.int32)
    at_BK, targets_BK = np.zeros((B, K), np.int32), np.zeros((B, K), np.int32)
    for b, row in enumerate(rows):
        tokens_BT[b, : len(row.tokens)], lengths_B1[b] = row.tokens, len(row.tokens)
        at_BK[b, : len(row.at)], targets_BK[b, : len(row.at)] = row.at, row.targets
    return _Batch(index, tokens_BT, lengths_B1, at_BK, targets_BK)


def _log_p(cfg: ModelConfig, params, tokens_BT, lengths_B1, at_BK, targets_BK):
    """(B, K). The head is computed only where tokens are hidden."""
    positions_BT, segments_BT = in_rows(tokens_BT, lengths_B1[:, 0])
    hidden_BTD, _ = transformer.hidden(cfg, params, tokens_BT, positions_BT, segments_BT)
    hidden_BKD = jnp.take_along_axis(hidden_BTD, at_BK[..., None], axis=1)
    logits_BKV = transformer.masked_logits(cfg, params, hidden_BKD)
    target_BK = jnp.take_along_axis(logits_BKV, targets_BK[..., None], axis=-1)[..., 0]
    return target_BK - jax.nn.logsumexp(logits_BKV, axis=-1)
