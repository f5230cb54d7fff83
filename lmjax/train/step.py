"""One update: (state, frozen parameters, batch) -> (state, metrics), compiled once, over the mesh."""

import math
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import optax

from lmjax import trained
from lmjax.compilation import fast_jit
from lmjax.data.batch import Batch
from lmjax.errors import UserError
from lmjax.models import attention, quantised
from lmjax.models.feedforward import Experts
from lmjax.sharding import RULES, batch_sharding, constrain
from lmjax.tasks.loss import Loss, Routed
from lmjax.train import state as train_state
from lmjax.train.state import TrainState


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepMetrics:
    """Scalars of one step: the loss as a mean, its weight, the norm of the gradient before clipping, and of a model
    with experts the means of `Routed`."""

    loss: jax.Array
    weight: jax.Array
    grad_norm: jax.Array
    routed: Routed | None = None


def microbatches(batch: Batch, count: int) -> Batch:
    """(B, ...) to (M, B / M, ...), every M-th row together, so that each microbatch lies over all devices."""

    def split(x):
        x = jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)
        return constrain(x, None, "batch", "length")

    return jax.tree.map(split, batch)


def grads_and_loss(experiment, params, frozen, batch: Batch, key):
    """Gradient of the summed objective by the trained parameters, and the loss as sums, over all microbatches."""

    def part(params, batch, key):
        model_params = trained.whole(experiment, params, frozen, in_training=True)
        loss = experiment.task.training_loss(experiment.model, model_params, batch, key)
        return loss.objective, loss

    gradient = jax.grad(part, has_aux=True)
    count = experiment.microbatches
    if count == 1:
        return gradient(params, batch, key)

    def add(sums, piece):
        batch, index = piece
        return jax.tree.map(jnp.add, sums, gradient(params, batch, jax.random.fold_in(key, index))), None

    routed = Routed(*4 * [jnp.zeros(())]) if isinstance(experiment.model.feedforward, Experts) else None
    zeros = (jax.tree.map(jnp.zeros_like, params), Loss(jnp.zeros(()), jnp.zeros(()), routed))
    return jax.lax.scan(add, zeros, (microbatches(batch, count), jnp.arange(count)))[0]


def update(experiment, optimizer: optax.GradientTransformation, where, state: TrainState, frozen, batch: Batch):
    """One step of maximum likelihood. The only division by the number of tokens is here. where: for every leaf of the
    optimizer's state its sharding between steps, or None where all stay on the device."""
    key = jax.random.fold_in(jax.random.key(experiment.seed), state.step)
    grads, loss = grads_and_loss(experiment, state.params, frozen, batch, key)
    grads = jax.tree.map(lambda g: g / jnp.maximum(loss.weight, 1e-30), grads)
    before = state.opt_state if where is None else on_device(state.opt_state, where)
    updates, opt_state = optimizer.update(grads, before, state.params)
    if where is not None:
        opt_state = jax.tree.map(jax.device_put, opt_state, where)
    params = optax.apply_updates(state.params, updates)
    routed = jax.tree.map(lambda x: x / jnp.maximum(loss.weight, 1e-30), loss.routed)
    metrics = StepMetrics(loss.mean(), loss.weight, optax.tree.norm(grads), routed)
    return TrainState(state.step + 1, params, opt_state), metrics


def on_device(tree, where):
    """Leaves that lie on the host, brought to the memory of the devices that `where` names."""
    return jax.tree.map(lambda x, sharding: jax.device_put(x, sharding.with_memory_kind("device")), tree, where)


def compile_step(experiment, optimizer, mesh):
    """(state, frozen, batch) -> (state, metrics), jitted, with the state's memory handed on from step to step."""
    where, frozen = train_state.shardings(experiment, optimizer, mesh)
    host = where.opt_state if experiment.optimizer_memory == "host" else None
    return fast_jit(
        partial(update, experiment, optimizer, host),
        donate_argnums=0,
        in_shardings=(where, frozen, batch_sharding(mesh)),
        out_shardings=(where, None),
    )


def check_split(experiment, mesh, *, here: bool = True) -> None:
    """Raises UserError where the batch or the weights cannot be split over the mesh, the kernel cannot run on it, or
    what is to be frozen or adapted is not there.
    here: whether the mesh has devices that can be asked what they can do."""
    axes = [f"mesh.{axis} {mesh.shape[axis]}" for axis in RULES["batch"] if mesh.shape[axis] > 1]
    ways = math.prod(mesh.shape[axis] for axis in RULES["batch"])
    rows, length = experiment.microbatch_size, experiment.length
    if rows % ways:
        raise UserError(
            f"batch_size {experiment.batch_size} / microbatches {experiment.microbatches} = {rows} rows cannot be "
            f"shared by {ways} devices ({' x '.join(axes)})"
        )
    parts = mesh.shape["sequence"]
    if length % parts:
        raise UserError(f"rows of {length} tokens cannot be split {parts} ways (mesh.sequence)")
    if here:
        kernel(experiment, mesh)
        check_host_memory(experiment, mesh)
        quantised.check(experiment.model.products, mesh.devices.flat[0])
    quantised.check_package(experiment.model.products)
    # a head has the outputs of its task before their names are known
    trained.parts(experiment.with_task(experiment.task))
    # the vocabulary may not be known yet, and need not divide
    train_state.param_shardings(replace(experiment.model, vocab=experiment.model.vocab or 1), mesh)


def check_host_memory(experiment, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError where something is to lie on the host and these devices cannot reach its memory."""
    remat = experiment.model.remat
    asked = {"optimizer_memory=host": experiment.optimizer_memory == "host", "model.remat=offload": remat == "offload"}
    kinds = {memory.kind for memory in mesh.devices.flat[0].addressable_memories()}
    for name, wanted in asked.items():
        if wanted and "pinned_host" not in kinds:
            raise UserError(f"{name}: XLA has no pinned host memory on {mesh.devices.flat[0].device_kind}")


def kernel(experiment, mesh: jax.sharding.Mesh) -> tuple[attention.Kernel, str]:
    """The attention kernel that training on this mesh will use, and why. Raises UserError where it cannot."""
    with jax.set_mesh(mesh):
        need = attention.need_of(experiment.model, apart=experiment.segmented, length=experiment.length)
    return attention.choose(experiment.model.kernel, need)
