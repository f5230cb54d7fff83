"""The log-likelihood of a continuation given its context: what every suite that writes nothing is computed from.

The rules are those of EleutherAI's lm-evaluation-harness 0.4.13 (`api/model.py`, `models/huggingface.py`, `utils.py`).
White space at the end of a context belongs to the continuation. Both are encoded together, and the continuation is
what comes after as many tokens as the context has alone. A context begins with BOS where the tokenizer puts it; an
empty one is BOS alone, or else EOS. What is longer than the model's context loses its beginning.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.compilation import program
from lmjax.errors import UserError
from lmjax.evaluate.progress import followed
from lmjax.generate.decode import padded_length
from lmjax.interop.config_json import ADAPTER_FILE, FILE
from lmjax.interop.tokenizer_files import named_controls
from lmjax.language_model import LanguageModel
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.models.positions import in_rows
from lmjax.sharding import place_batch, sizes_in_use
from lmjax.tasks.loss import loss_chunk
from lmjax.tokenizers.sides import prompt_ids

# lengths are padded to these times powers of two: what is shorter is padding that a CPU computes
SHORTEST_ON_CPU, SHORTEST = 32, 128
# a CPU computes so many rows of one length in four lengths: a program more costs less than their padding
MANY_ON_CPU = 512
# tokens that a device computes together, where the rows are short enough
TOKENS_ON_CPU, TOKENS = 2048, 16384


class Pair(NamedTuple):
    """Ids: of what is given, at least one, and of what is scored, at least one."""

    context: np.ndarray
    continuation: np.ndarray


@dataclass(frozen=True)
class Likelihoods:
    """Of N pairs. sums: (N,) log p of the whole continuation in nats, float64. greedy: (N,) whether each of its tokens
    is the most probable one. cut: how many pairs were longer than the model's context."""

    sums: np.ndarray
    greedy: np.ndarray
    cut: int


class _Batch(NamedTuple):
    """index: which pairs the rows are; rows beyond them are padding. at_BC: where in its row each scored token is
    predicted."""

    index: np.ndarray
    tokens_BT: np.ndarray
    at_BC: np.ndarray
    targets_BC: np.ndarray


def prefix_of(model: LanguageModel) -> int | None:
    """The token before a text without context: BOS, else EOS, of the policy or as tokenizer_config.json names them;
    None where the tokenizer has neither."""
    policy, path = model.tokenizer.policy, model.path
    # a run's model has seen only what its policy puts there
    theirs = isinstance(path, Path) and any((path / name).is_file() for name in (FILE, ADAPTER_FILE))
    named = named_controls(model.tokenizer) if theirs else {}
    known = (policy.bos, named.get("bos"), named.get("eos"), *policy.stops)
    return next((token for token in known if token is not None), None)


def protocol_of(model: LanguageModel, cut: int | None = None) -> dict[str, str | int]:
    """What stands before a text, how much is read, in which numbers, and how many texts were longer than that."""
    prefix, bos = prefix_of(model), model.tokenizer.policy.bos
    if prefix is None:
        start = "nothing before a text, whose first token is not scored (the tokenizer has neither BOS nor EOS)"
    elif bos is None:
        start = f"no BOS; token {prefix} before a text without context"
    else:
        start = f"BOS ({bos}) before every text"
    told = {"start": start, "context": model.cfg.context, "dtype": model.cfg.dtype}
    return told if cut is None else told | {"longer_ones_cut_on_the_left": cut}


def encode_pair(model: LanguageModel, context: str, continuation: str) -> Pair:
    """By the rules above. Without BOS and EOS the first token of a text without context is given. Raises UserError
    where nothing is left to score, or more than the model's context."""
    kept = context.rstrip()
    if kept:
        before = prompt_ids(kept, model.tokenizer)
        after = prompt_ids(context + continuation, model.tokenizer)[len(before) :]
    else:
        before, after = prefix_ids(model), model.tokenizer.encode(context + continuation)
    if not len(before):
        before, after = after[:1], after[1:]
    if not 1 <= len(after) <= model.cfg.context:
        raise UserError(
            f"{continuation[:40]!r} after {context[-40:]!r} has {len(after)} token(s) to score; expected 1 to "
            f"{model.cfg.context}, the model's context"
        )
    return Pair(before, after)


def prefix_ids(model: LanguageModel) -> np.ndarray:
    """`prefix_of`, as the beginning of a text."""
    prefix = prefix_of(model)
    return np.array([] if prefix is None else [prefix], np.int32)


def rolling_pairs(prefix: np.ndarray, ids: np.ndarray, context: int) -> list[Pair]:
    """Pairs that score every token of a text once: the first `context` tokens after the prefix, then as many at a time,
    given the one before them; the last ones given as many as there is room for (lm-eval's `make_disjoint_window` of
    `get_rolling_token_windows` with context_len 1). Without a prefix the first token is given. Empty where there is
    nothing to score."""
    ids = np.concatenate([prefix, ids]).astype(np.int32)
    pairs = []
    for start in range(1, len(ids), context):
        end = min(start + context, len(ids))
        pairs.append(Pair(ids[max(0, end - context - 1) : start], ids[start:end]))
    return pairs


def rolling_sums(model: LanguageModel, texts: Sequence[Sequence[Pair]]) -> np.ndarray:
    """(N,): log p of each text in nats, a sum over its pairs; 0 where it has none. Raises UserError as
    `log_likelihoods`."""
    found = log_likelihoods(model, [pair for pairs in texts for pair in pairs])
    of_text = np.repeat(np.arange(len(texts)), [len(pairs) for pairs in texts])
    return np.bincount(of_text, found.sums, minlength=len(texts))


def log_likelihoods(model: LanguageModel, pairs: Sequence[Pair]) -> Likelihoods:
    """The scores of all pairs, on the mesh in use, over whose devices the rows are shared; parameters must lie there.
    A continuation must not be longer than the model's context. Raises UserError where the model gives NaN."""
    context = model.cfg.context
    rows = [np.concatenate(pair)[-(context + 1) :].astype(np.int32) for pair in pairs]
    counts = np.array([len(pair.continuation) for pair in pairs], int)
    sums, greedy = np.zeros(len(rows)), np.zeros(len(rows), bool)

    def take(batch: _Batch, computed) -> None:
        log_p_BC, right_BC = (x[: len(batch.index)] for x in jax.device_get(computed))
        scored_BC = np.arange(log_p_BC.shape[1]) < counts[batch.index][:, None]
        # float64: a float32 sum of a thousand terms loses the sixth digit
        sums[batch.index] = np.sum(log_p_BC, axis=1, where=scored_BC, dtype=np.float64)
        greedy[batch.index] = np.all(right_BC, axis=1, where=scored_BC)

    waiting: deque = deque()
    for batch in followed(_batches(rows, counts, context), len(rows), lambda batch: len(batch.index)):
        waiting.append((batch, _computed(model, batch)))
        # the device computes one batch while the next is made
        if len(waiting) > 1:
            take(*waiting.popleft())
    for one in waiting:
        take(*one)
    if not np.isfinite(sums).all():
        raise UserError(f"the model gives no finite likelihood to {np.sum(~np.isfinite(sums))} of {len(sums)} texts")
    return Likelihoods(sums, greedy, sum(len(pair[0]) + len(pair[1]) > context + 1 for pair in pairs))


def _computed(model: LanguageModel, batch: _Batch):
    mesh = jax.sharding.get_mesh()
    arrays = batch[1:] if mesh.empty else place_batch(batch[1:], mesh)
    chunk = loss_chunk(*batch.targets_BC.shape, model.cfg.vocab, sizes_in_use())
    return program(_scores, model.cfg, chunk)(model.params, *arrays)


def row_lengths(lengths: Sequence[int], context: int) -> np.ndarray:
    """(N,): to which of few lengths each row is padded, at most the context."""
    cpu = jax.default_backend() == "cpu"
    shortest = SHORTEST_ON_CPU if cpu else SHORTEST
    found = np.array([padded_length(length, context, shortest=shortest) for length in lengths], int)
    for T in np.unique(found) if cpu else ():
        same = found == T
        if same.sum() >= MANY_ON_CPU:
            step = -(-T // 4)
            found[same] = np.minimum(-(-np.asarray(lengths)[same] // step) * step, context)
    return found


def _batches(rows: list[np.ndarray], counts: np.ndarray, context: int) -> Iterator[_Batch]:
    """The longest first. Lengths are padded to few sizes, and scored tokens to the length or a quarter of it, so that
    few programs are compiled."""
    devices = max(1, jax.sharding.get_mesh().size)
    tokens = TOKENS_ON_CPU if jax.default_backend() == "cpu" else TOKENS
    lengths = row_lengths([len(row) - 1 for row in rows], context)
    widths = np.where(4 * counts <= lengths, lengths // 4, lengths)
    order = np.lexsort((counts, widths, lengths))[::-1]
    for T, C in sorted({*zip(lengths.tolist(), widths.tolist(), strict=True)}, reverse=True):
        same = order[(lengths[order] == T) & (widths[order] == C)]
        B = padded_length(-(-len(same) // devices), max(1, tokens // T), shortest=1) * devices
        for start in range(0, len(same), B):
            yield _batch(same[start : start + B], rows, counts, (B, T, C))


def _batch(index: np.ndarray, rows: list[np.ndarray], counts: np.ndarray, shape: tuple[int, int, int]) -> _Batch:
    B, T, C = shape
    tokens_BT, at_BC, targets_BC = np.zeros((B, T), np.int32), np.zeros((B, C), np.int32), np.zeros((B, C), np.int32)
    for b, i in enumerate(index):
        row, count = rows[i], counts[i]
        tokens_BT[b, : len(row) - 1] = row[:-1]
        at_BC[b, :count] = np.arange(len(row) - 1 - count, len(row) - 1)
        targets_BC[b, :count] = row[-count:]
    return _Batch(index, tokens_BT, at_BC, targets_BC)


def _scores(cfg: ModelConfig, chunk: int | None, params, tokens_BT, at_BC, targets_BC):
    """(log_p_BC, right_BC). chunk: of C, the places whose logits are in memory at one time; None: all."""
    positions_BT, _ = in_rows(tokens_BT)
    hidden_BTD, _ = transformer.hidden(cfg, params, tokens_BT, positions_BT)
    hidden_BCD = jnp.take_along_axis(hidden_BTD, at_BC[..., None], axis=1)
    matrix_VD = transformer.unembedding(cfg, params)

    def part(piece):
        hidden_BCD, targets_BC = piece
        logits_BCV = transformer.logits(matrix_VD, hidden_BCD, cfg.logit_cap)
        target_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
        log_p_BC = target_BC - jax.nn.logsumexp(logits_BCV, axis=-1)
        return log_p_BC, jnp.argmax(logits_BCV, axis=-1) == targets_BC

    if chunk is None:
        return part((hidden_BCD, targets_BC))
    B, C = targets_BC.shape
    pieces = [jnp.moveaxis(x.reshape(B, C // chunk, chunk, *x.shape[2:]), 1, 0) for x in (hidden_BCD, targets_BC)]
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(B, C), jax.lax.map(part, tuple(pieces)))
