"""All that training changes, and beside it what it does not."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from lmjax import optim, sharding, trained
from lmjax.models.config import ModelConfig
from lmjax.models.transformer import abstract_params, init_params, param_names
from lmjax.trees import map_named, named_leaves


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """step: updates done. params, opt_state: trees of arrays; params are those that are trained (`trained.split`).
    Keys are folded from the seed and the step, so none are kept."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState

    @property
    def rest(self) -> dict:
        """What a checkpoint holds beside the parameters."""
        return {"step": self.step, "opt_state": self.opt_state}


def transform(experiment) -> optax.GradientTransformation:
    """The experiment's optimizer, with its schedule."""
    return optim.transform(experiment.optimizer, experiment.schedule, experiment.steps)


def fresh(experiment, optimizer: optax.GradientTransformation) -> tuple[TrainState, dict]:
    """The state before the first step and the frozen parameters, a pure function of its arguments."""
    return begun(experiment, optimizer, init_params(experiment.model, jax.random.key(experiment.seed)))


def compile_fresh(experiment, mesh: jax.sharding.Mesh):
    """() -> `fresh`, jitted, every array in its place on the mesh."""
    optimizer = transform(experiment)
    return jax.jit(partial(fresh, experiment, optimizer), out_shardings=shardings(experiment, optimizer, mesh))


def begun(experiment, optimizer: optax.GradientTransformation, params: dict) -> tuple[TrainState, dict]:
    """The same, with these parameters of the model."""
    ours, frozen = trained.split(experiment, params)
    return TrainState(jnp.zeros((), jnp.int32), ours, optimizer.init(ours)), frozen


def param_shardings(cfg: ModelConfig, mesh: jax.sharding.Mesh):
    """A NamedSharding for every parameter. Raises UserError where an axis of the mesh does not divide it."""
    return jax.tree.map(
        lambda x, names: sharding.placement(mesh, names, x.shape), abstract_params(cfg), param_names(cfg)
    )


def shardings(experiment, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh) -> tuple[TrainState, dict]:
    """A NamedSharding for every leaf of the state and of the frozen parameters. Moments lie where their parameters
    lie; with experiment.optimizer_memory "host" the optimizer's arrays are in the host's memory, and its counters stay
    on the device."""
    state, frozen = jax.eval_shape(lambda: fresh(experiment, optimizer))
    params, of_frozen = (
        jax.tree.map(lambda x, names: sharding.placement(mesh, names, x.shape), shapes, names)
        for shapes, names in zip((state.params, frozen), trained.axis_names(experiment), strict=True)
    )
    replicated = NamedSharding(mesh, PartitionSpec())
    by_name = {
        name: (shape.shape, where)
        for (name, shape), (_, where) in zip(named_leaves(state.params), named_leaves(params), strict=True)
    }

    def like_its_parameter(name, leaf):
        # ".../mu/blocks/attention/q/kernel" belongs to "blocks/attention/q/kernel"; a factored moment has another shape
        pieces = name.split("/")
        endings = ("/".join(pieces[i:]) for i in range(len(pieces)))
        shape, where = next((by_name[ending] for ending in endings if ending in by_name), (None, replicated))
        return where if leaf.shape == shape else replicated

    def in_memory(name, leaf):
        where = like_its_parameter(name, leaf)
        away = experiment.optimizer_memory == "host" and leaf.ndim
        return where.with_memory_kind("pinned_host") if away else where

    return TrainState(replicated, params, map_named(in_memory, state.opt_state)), of_frozen


def abstract(experiment, optimizer: optax.GradientTransformation, mesh) -> tuple[TrainState, dict]:
    """The shapes of the state and of the frozen parameters, each with its place on the mesh."""
    where = shardings(experiment, optimizer, mesh)
    shapes = jax.eval_shape(lambda: fresh(experiment, optimizer))
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, where)


def restored(experiment, optimizer: optax.GradientTransformation, mesh, restore) -> tuple[TrainState, dict]:
    """The state of a checkpoint, and what is frozen as far as it is in there. restore: see `checkpoint.restore`; of its
    arguments the abstract trees are missing."""
    state, frozen = abstract(experiment, optimizer, mesh)
    params, others = restore(trained.stored(experiment, state.params, frozen), state.rest)
    ours, frozen = trained.of_stored(experiment, params)
    return TrainState(others["step"], ours, others["opt_state"]), frozen
