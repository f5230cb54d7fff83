"""One update: (state, batch) -> (state, metrics), compiled once, over the mesh."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from lmjax.data.batch import Batch
from lmjax.sharding import constrain
from lmjax.tasks.loss import Loss
from lmjax.train.state import TrainState


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepMetrics:
    """Scalars of one step: the loss as a mean, its weight, and the norm of the gradient before clipping."""

    loss: jax.Array
    weight: jax.Array
    grad_norm: jax.Array


def microbatches(batch: Batch, count: int) -> Batch:
    """(B, ...) to (M, B / M, ...), every M-th row together, so that each microbatch lies over all devices."""

    def split(x):
        x = jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)
        return constrain(x, None, "batch", *[None] * (x.ndim - 2))

    return jax.tree.map(split, batch)


def grads_and_loss(experiment, params, batch: Batch, key):
    """Gradient of the summed loss, and the loss as sums, over all microbatches."""

    def part(params, batch, key):
        loss = experiment.task.training_loss(experiment.model, params, batch, key)
        return loss.total, loss

    gradient = jax.grad(part, has_aux=True)
    count = experiment.microbatches
    if count == 1:
        return gradient(params, batch, key)

    def add(sums, piece):
        batch, index = piece
        return jax.tree.map(jnp.add, sums, gradient(params, batch, jax.random.fold_in(key, index))), None

    zeros = (jax.tree.map(jnp.zeros_like, params), Loss(jnp.zeros(()), jnp.zeros(())))
    return jax.lax.scan(add, zeros, (microbatches(batch, count), jnp.arange(count)))[0]


def update(experiment, optimizer: optax.GradientTransformation, state: TrainState, batch: Batch):
    """One step of maximum likelihood. The only division by the number of tokens is here."""
    key = jax.random.fold_in(jax.random.key(experiment.seed), state.step)
    grads, loss = grads_and_loss(experiment, state.params, batch, key)
    grads = jax.tree.map(lambda g: g / jnp.maximum(loss.weight, 1e-30), grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = StepMetrics(loss.mean(), loss.weight, optax.tree.norm(grads))
    return TrainState(state.step + 1, params, opt_state), metrics
