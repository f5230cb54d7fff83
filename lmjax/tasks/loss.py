"""Cross-entropy as sums. The mean is taken once, by whoever holds the sum over all devices and microbatches."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from lmjax.models.packed import Packed
from lmjax.models.transformer import capped, logits
from lmjax.sharding import constrain, share, sizes_in_use

# of float32 logits that one device holds at a time. A chunk reads and writes the whole gradient of the matrix, so it
# wants some 500 places to be bound by its products: at 128k entries those are these 256 MiB
LOGIT_BYTES = 2**28
# places whose logits exist at one time; None: all of a row
Chunk = int | Literal["auto"] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routed:
    """What the routers of experts add, as sums like those of Loss: figures of a microbatch times its weight, so that
    the mean over microbatches weighs each by its target tokens. penalty: what is added to the objective. balance, z,
    dropped: those of `moe.Routing`, means over the layers."""

    penalty: jax.Array
    balance: jax.Array
    z: jax.Array
    dropped: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Loss:
    """total: weighted sum in nats. weight: sum of the weights, the number of target tokens where all are 1. routed: in
    training, of a model with experts; no part of total. correct: sum of the weights of the predictions that are right,
    where a task counts them, in evaluation. figures: sums of what else a task tells of its predictions there."""

    total: jax.Array
    weight: jax.Array
    routed: Routed | None = None
    correct: jax.Array | None = None
    figures: dict[str, jax.Array] | None = None

    @property
    def objective(self) -> jax.Array:
        """What training makes small, as a sum."""
        return self.total if self.routed is None else self.total + self.routed.penalty

    def mean(self) -> jax.Array:
        """Nats per target token; 0 where there is none."""
        return self.total / jnp.maximum(self.weight, 1e-30)


def with_routing(loss: Loss, routing, ff) -> Loss:
    """The loss with what the routers of experts add, times its weight. routing: of `transformer.trained`, by layer;
    None where there are no experts. ff: the model's Experts."""
    if routing is None:
        return loss
    penalty = ff.balance * routing.balance.sum() + ff.router_z_loss * routing.z.sum()
    sums = (loss.weight * figure for figure in (penalty, *(layers.mean() for layers in routing)))
    return replace(loss, routed=Routed(*sums))


def cross_entropy(
    logits_V, targets, weights, *, label_smoothing: float = 0.0, z_loss: float = 0.0, count_correct: bool = False
) -> Loss:
    """-log softmax(logits)[target], for logits (..., V) in float32 and targets, weights (...).

    label_smoothing: this share of the target's probability is spread over the whole vocabulary
    (arXiv:1512.00567, section 7). z_loss: times log(Z)^2, which keeps logits from drifting (PaLM, arXiv:2204.02311,
    section 5). With both 0 it is the plain cross-entropy, to the bit.
    """
    log_z = jax.nn.logsumexp(logits_V, axis=-1)
    target = jnp.take_along_axis(logits_V, targets[..., None], axis=-1)[..., 0]
    nats = log_z - target
    if label_smoothing:
        nats = log_z - (1 - label_smoothing) * target - label_smoothing * logits_V.mean(axis=-1)
    if z_loss:
        nats = nats + z_loss * log_z**2
    correct = jnp.sum((jnp.argmax(logits_V, axis=-1) == targets) * weights) if count_correct else None
    return Loss(jnp.sum(nats * weights), jnp.sum(weights), correct=correct)


def check_loss(label_smoothing: float = 0.0, chunk: Chunk = None) -> None:
    """Raises ValueError for a setting of a task that is out of range."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; expected a number from 0 to below 1")
    if isinstance(chunk, int) and chunk < 1:
        raise ValueError(f"loss_chunk is {chunk}; expected a positive number")


def check_rows(chunk: Chunk, length: int) -> None:
    """Raises ValueError where the rows are not a multiple of the chunk."""
    if isinstance(chunk, int) and chunk < length and length % chunk:
        raise ValueError(f"rows of {length} tokens are not a multiple of task.loss_chunk {chunk}")


def chunk_of(chunk: Chunk, rows: int, length: int, vocab: int) -> int | None:
    """A task's `loss_chunk` for microbatches of so many rows on the mesh in use; None: all places at one time."""
    return loss_chunk(rows, length, vocab, sizes_in_use()) if chunk == "auto" else chunk


def loss_chunk(rows: int, length: int, vocab: int, sizes: dict[str, int]) -> int | None:
    """Places in each row whose logits are computed at one time, on a mesh of these sizes: None, all of them, where one
    device's share stays within LOGIT_BYTES; else the largest divisor of the length that does and that "sequence"
    splits, or the smallest that it splits."""

    def fits(places: int) -> bool:
        b, t, v = share(("batch", "length", "vocab"), (rows, places, vocab), sizes)
        return 4 * b * t * v <= LOGIT_BYTES

    if fits(length):
        return None
    ways = sizes.get("sequence", 1)
    ways = ways if length % ways == 0 else 1
    divisors = [n for n in range(length, 0, -1) if length % n == 0 and n % ways == 0]
    return next((n for n in divisors if fits(n)), divisors[-1])


def vocabulary_loss(
    hidden_BTD, matrix_VD, targets_BT, weights_BT, *, chunk: int | None, cap: float | None = None, bias_V=None, **kind
) -> Loss:
    """`cross_entropy` of hidden @ matrix^T + bias. chunk: places in each row whose logits exist at one time, in the
    backward pass too; it must divide T. None: all of them. cap: on the logits. By chunks there is no
    gradient of the weights."""
    if chunk is not None and chunk < targets_BT.shape[1]:
        return _by_chunks((chunk, cap, tuple(kind.items())), hidden_BTD, (matrix_VD, bias_V), targets_BT, weights_BT)
    raw_BTV = constrain(_raw(matrix_VD, bias_V, hidden_BTD), "batch", "length", "vocab")
    return cross_entropy(capped(raw_BTV, cap), targets_BT, weights_BT, **kind)


def _raw(matrix_VD, bias_V, hidden: jax.Array) -> jax.Array:
    """(..., V), not capped. bias_V: None where there is none."""
    raw_V = logits(matrix_VD, hidden, None)
    return raw_V if bias_V is None else raw_V + bias_V


def log_probabilities(hidden_BTD, matrix_VD, targets_BT, *, chunk: int | None, cap: float | None = None) -> jax.Array:
    """(B, T): log p of each target, for losses that are no sum over places. chunk, cap: of `vocabulary_loss`; the
    products of a chunk are computed again in the backward pass."""

    def part(hidden_BCD, targets_BC):
        logits_BCV = constrain(logits(matrix_VD, hidden_BCD, cap), "batch", "length", "vocab")
        target_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
        return target_BC - jax.nn.logsumexp(logits_BCV, axis=-1)

    if chunk is None or chunk >= targets_BT.shape[1]:
        return part(hidden_BTD, targets_BT)
    matrix_VD = _whole_rows(matrix_VD, hidden_BTD.dtype)
    again = jax.checkpoint(part)
    pieces = (_chunks(hidden_BTD, chunk), _chunks(targets_BT, chunk))
    _, log_p_NBC = jax.lax.scan(lambda carry, piece: (carry, again(*piece)), None, pieces)
    return jnp.moveaxis(log_p_NBC, 0, 2).reshape(targets_BT.shape)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_chunks(setting, hidden_BTD, output, targets_BT, weights_BT) -> Loss:
    """setting: (chunk, cap, the kind of cross-entropy). output: (matrix_VD, bias_V). Where a gradient is wanted it is
    computed beside the loss, chunk by chunk, so that no product is computed twice (as in Liger Kernel,
    arXiv:2410.10989, section 3.2)."""
    chunk, cap, kind = setting
    matrix_VD, bias_V = _whole_rows(output[0], hidden_BTD.dtype), output[1]

    def add(sums, piece):
        return jax.tree.map(jnp.add, sums, _part(cap, kind, matrix_VD, bias_V, *piece)), None

    pieces = tuple(_chunks(x, chunk) for x in (hidden_BTD, targets_BT, weights_BT))
    return jax.lax.scan(add, _nothing(kind), pieces)[0]


def _by_chunks_forward(setting, hidden_BTD, output, targets_BT, weights_BT):
    (chunk, cap, kind), (matrix_VD, bias_V) = setting, output
    whole_VD = _whole_rows(matrix_VD, hidden_BTD.dtype)
    # P x Q parts of rows and places, one on each device, have sums of their own, which are added after the last chunk:
    # of one sum XLA adds the devices' parts at every chunk
    P, Q, _ = (n // own for n, own in zip(*_shapes(hidden_BTD, chunk), strict=True))

    def split(x_BCI, name):
        B, C, I = x_BCI.shape
        return constrain(x_BCI.reshape(P, B // P, Q, C // Q, I), "batch", None, "length", None, name)

    def add(sums, piece):
        sum_loss, sum_PQVD, sum_V = sums
        hidden_BCD, targets_BC, weights_BC = piece
        raw_BCV = constrain(_raw(whole_VD, bias_V, hidden_BCD), "batch", "length", "vocab")
        _, back, loss = jax.vjp(lambda x: _of_logits(cap, kind, x, targets_BC, weights_BC), raw_BCV, has_aux=True)
        (d_raw_BCV,) = back(jnp.ones(()))
        sum_V = None if bias_V is None else sum_V + d_raw_BCV.sum((0, 1))
        d_BCV = d_raw_BCV.astype(hidden_BCD.dtype)
        d_BCD = jnp.einsum("BCV,VD->BCD", d_BCV, whole_VD)
        by_device = (split(d_BCV, "vocab"), split(hidden_BCD, "embed"))
        d_PQVD = jnp.einsum("PBQCV,PBQCD->PQVD", *by_device, preferred_element_type=jnp.float32)
        sum_PQVD = constrain(sum_PQVD + d_PQVD, "batch", "length", "vocab", None)
        return (jax.tree.map(jnp.add, sum_loss, loss), sum_PQVD, sum_V), constrain(d_BCD, "batch", "length", "embed")

    pieces = tuple(_chunks(x, chunk) for x in (hidden_BTD, targets_BT, weights_BT))
    zeros_PQVD = jnp.zeros((P, Q, *matrix_VD.shape), jnp.float32)
    zeros_PQVD = constrain(zeros_PQVD, "batch", "length", "vocab", None)
    zeros_V = None if bias_V is None else jnp.zeros(bias_V.shape)
    (loss, d_PQVD, d_V), d_NBCD = jax.lax.scan(add, (_nothing(kind), zeros_PQVD, zeros_V), pieces)
    # the matrix is a float32 parameter, and so is its gradient
    d_VD = constrain(d_PQVD.sum((0, 1)).astype(matrix_VD.dtype), "vocab", "embed")
    # without the barrier XLA keeps every device's whole sum until after the backward pass of the blocks
    d_NBCD, d_VD = jax.lax.optimization_barrier((d_NBCD, d_VD))
    return loss, (jnp.moveaxis(d_NBCD, 0, 2).reshape(hidden_BTD.shape), (d_VD, d_V))


def _by_chunks_backward(setting, saved, d_loss: Loss):
    d_BTD, d_output = jax.tree.map(lambda d: d * d_loss.total.astype(d.dtype), saved)
    return d_BTD, d_output, None, None


_by_chunks.defvjp(_by_chunks_forward, _by_chunks_backward)


def _nothing(kind) -> Loss:
    """Of no place, to add to."""
    return Loss(*2 * [jnp.zeros(())], correct=jnp.zeros(()) if dict(kind).get("count_correct") else None)


def _part(cap, kind, matrix_VD, bias_V, hidden_BCD, targets_BC, weights_BC) -> Loss:
    raw_BCV = constrain(_raw(matrix_VD, bias_V, hidden_BCD), "batch", "length", "vocab")
    return _of_logits(cap, kind, raw_BCV, targets_BC, weights_BC)[1]


def _of_logits(cap, kind, raw_BCV, targets_BC, weights_BC) -> tuple[jax.Array, Loss]:
    """(what is differentiated, the sums) of logits that are not yet capped."""
    loss = cross_entropy(capped(raw_BCV, cap), targets_BC, weights_BC, **dict(kind))
    return loss.total, loss


def _shapes(hidden_BTD, chunk: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of a chunk of the hidden vectors: whole, and one device's part."""
    whole = (hidden_BTD.shape[0], chunk, hidden_BTD.shape[2])
    return whole, share(("batch", "length", "embed"), whole, sizes_in_use())


def _whole_rows(matrix_VD, dtype):
    """Cast and gathered over the axes that split a row, once for all chunks."""
    return matrix_VD if isinstance(matrix_VD, Packed) else constrain(matrix_VD.astype(dtype), "vocab", None)


def _chunks(x, chunk: int):
    """(B, T, ...) to (T / chunk, B, chunk, ...): every T/chunk-th place together, so that each chunk lies over all
    devices that split a row."""
    B, T = x.shape[:2]
    return jnp.moveaxis(x.reshape(B, chunk, T // chunk, *x.shape[2:]), 2, 0)
