"""All that training changes."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from lmjax import sharding
from lmjax.models.config import ModelConfig
from lmjax.models.transformer import abstract_params, init_params, param_names
from lmjax.trees import map_named, named_leaves


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """step: updates done. params, opt_state: trees of arrays. Keys are folded from the seed and the step, so none
    are kept."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState


def fresh(cfg: ModelConfig, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step, a pure function of its arguments."""
    return begun(optimizer, init_params(cfg, jax.random.key(seed)))


def begun(optimizer: optax.GradientTransformation, params: dict) -> TrainState:
    """The state before the first step, with these parameters."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def param_shardings(cfg: ModelConfig, mesh: jax.sharding.Mesh):
    """A NamedSharding for every parameter. Raises UserError where an axis of the mesh does not divide it."""
    return jax.tree.map(
        lambda x, names: sharding.placement(mesh, names, x.shape), abstract_params(cfg), param_names(cfg)
    )


Memory = Literal["device", "host"]


def shardings(
    cfg: ModelConfig, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh, memory: Memory = "device"
) -> TrainState:
    """A NamedSharding for every leaf of the state; moments lie where their parameters lie. memory: of which the
    optimizer's arrays take; its counters stay on the device."""
    shapes, params = abstract_params(cfg), param_shardings(cfg, mesh)
    replicated = NamedSharding(mesh, PartitionSpec())
    by_name = {
        name: (shape.shape, where)
        for (name, shape), (_, where) in zip(named_leaves(shapes), named_leaves(params), strict=True)
    }

    def like_its_parameter(name, leaf):
        # ".../mu/blocks/attention/q/kernel" belongs to "blocks/attention/q/kernel"; a factored moment has another shape
        pieces = name.split("/")
        endings = ("/".join(pieces[i:]) for i in range(len(pieces)))
        shape, where = next((by_name[ending] for ending in endings if ending in by_name), (None, replicated))
        return where if leaf.shape == shape else replicated

    def in_memory(name, leaf):
        where = like_its_parameter(name, leaf)
        return where.with_memory_kind("pinned_host") if memory == "host" and leaf.ndim else where

    opt_state = jax.eval_shape(lambda: optimizer.init(init_params(cfg, jax.random.key(0))))
    return TrainState(replicated, params, map_named(in_memory, opt_state))
