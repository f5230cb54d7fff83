"""Cross-entropy as sums. The mean is taken once, by whoever holds the sum over all devices and microbatches."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lmjax.models.transformer import logits
from lmjax.sharding import constrain


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
    training, of a model with experts; no part of total."""

    total: jax.Array
    weight: jax.Array
    routed: Routed | None = None

    @property
    def objective(self) -> jax.Array:
        """What training makes small, as a sum."""
        return self.total if self.routed is None else self.total + self.routed.penalty

    def mean(self) -> jax.Array:
        """Nats per target token; 0 where there is none."""
        return self.total / jnp.maximum(self.weight, 1e-30)


def cross_entropy(logits_V, targets, weights, *, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
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
    return Loss(jnp.sum(nats * weights), jnp.sum(weights))


def vocabulary_loss(
    hidden_BTD, matrix_VD, targets_BT, weights_BT, *, chunk: int | None, cap: float | None = None, **kind
) -> Loss:
    """`cross_entropy` of hidden @ matrix^T. chunk: places in each row whose logits exist at one time, in the
    backward pass too, which computes them again; it must divide T. None: all of them. cap: on the logits."""

    def part(hidden, targets, weights):
        logits_V = constrain(logits(matrix_VD, hidden, cap), "batch", "length", "vocab")
        return cross_entropy(logits_V, targets, weights, **kind)

    B, T = targets_BT.shape
    if chunk is None or chunk >= T:
        return part(hidden_BTD, targets_BT, weights_BT)

    def chunks(x):
        # every T/chunk-th place together, so that each chunk lies over all devices that split a row
        return jnp.moveaxis(x.reshape(B, chunk, T // chunk, *x.shape[2:]), 2, 0)

    def add(sums, piece):
        return jax.tree.map(jnp.add, sums, jax.checkpoint(part)(*piece)), None

    zero = Loss(jnp.zeros(()), jnp.zeros(()))
    return jax.lax.scan(add, zero, (chunks(hidden_BTD), chunks(targets_BT), chunks(weights_BT)))[0]
