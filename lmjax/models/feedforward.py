"""The feed-forward layer: Dense (GPT-2), Gated (GLU variants, arXiv:2002.05202), or Experts, which are in moe.py."""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.models.projection import Projection
from lmjax.models.tap import tap
from lmjax.sharding import constrain

if TYPE_CHECKING:
    from lmjax.models.config import ModelConfig

Activation = Literal["gelu", "gelu_tanh", "relu", "relu_squared", "silu"]


@dataclass(frozen=True, kw_only=True)
class Dense:
    """activation(x W_up) W_down. width: None takes 4 D."""

    width: int | None = None
    activation: Activation = "gelu_tanh"
    bias: bool = True

    def __post_init__(self):
        if self.width is not None and self.width < 1:
            raise ValueError(f"width is {self.width}; expected a positive number")

    def default_width(self, model_width: int) -> int:
        return 4 * model_width


@dataclass(frozen=True, kw_only=True)
class Gated:
    """(activation(x W_gate) * x W_up) W_down. width: None takes 8/3 D, the parameters of Dense, rounded up to a
    multiple of 64."""

    width: int | None = None
    activation: Activation = "silu"
    bias: bool = False

    def __post_init__(self):
        if self.width is not None and self.width < 1:
            raise ValueError(f"width is {self.width}; expected a positive number")

    def default_width(self, model_width: int) -> int:
        return -(-8 * model_width // (3 * 64)) * 64


@dataclass(frozen=True, kw_only=True)
class Experts:
    """Gated layers of which a token uses a few (Mixtral, arXiv:2401.04088, section 2.1): the `chosen` that the router
    finds most probable, weighted by their probabilities, which are made to sum to 1. width: of one expert; None takes
    what Gated takes.

    The rest is of training alone; evaluation and decoding are dropless. balance, router_z_loss: weights of the
    router's two losses (`moe.routing`), over the microbatch of all devices, summed over the layers. capacity: None is
    dropless, a token always reaches the experts that it chose; a number times the mean load, chosen x tokens /
    count, is what an expert takes of a microbatch. What is over it is dropped, as `moe.places` says."""

    count: int = 8
    chosen: int = 2
    width: int | None = None
    activation: Activation = "silu"
    balance: float = 0.01
    router_z_loss: float = 0.001
    capacity: float | None = None

    def __post_init__(self):
        if self.width is not None and self.width < 1:
            raise ValueError(f"width is {self.width}; expected a positive number")
        for name in ("balance", "router_z_loss"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if self.capacity is not None and not 0 < self.capacity < math.inf:
            raise ValueError(f"capacity is {self.capacity}; expected a positive number")
        if not 1 <= self.chosen <= self.count:
            raise ValueError(f"chosen is {self.chosen}; expected a number from 1 to count {self.count}")

    def default_width(self, model_width: int) -> int:
        return Gated().default_width(model_width)


FeedForward = Dense | Gated | Experts


def activate(x: jax.Array, name: Activation) -> jax.Array:
    """gelu is the exact one, with erf (arXiv:1606.08415); gelu_tanh its approximation, GPT-2's."""
    match name:
        case "gelu":
            return gelu(x)
        case "gelu_tanh":
            return gelu_tanh(x)
        case "relu":
            return jax.nn.relu(x)
        case "relu_squared":
            return jnp.square(jax.nn.relu(x))
        case "silu":
            return jax.nn.silu(x)


def gated(name: Activation, gate: jax.Array, up: jax.Array) -> jax.Array:
    return activate(gate, name) * up


def _gelu_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x Phi(x), with Phi the normal distribution, and its derivative Phi(x) + x phi(x)."""
    below = 0.5 * (1 + jax.lax.erf(x * 2**-0.5))
    return x * below, below + x * jnp.exp(-0.5 * x * x) * (2 * jnp.pi) ** -0.5


def _gelu_tanh_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), and its derivative."""
    scale, cubic = (2 / jnp.pi) ** 0.5, 0.044715
    t = jnp.tanh(scale * (x + cubic * x * x * x))
    half = 0.5 * (1 + t)
    return x * half, half + 0.5 * x * (1 - t * t) * scale * (1 + 3 * cubic * x * x)


def _keeping_slope(value_and_slope):
    """A function whose backward pass multiplies by the slope that the forward pass kept. XLA would compute the slope
    again, one element at a time, inside the transposing copies that come before matrix products."""
    function = jax.custom_vjp(lambda x: value_and_slope(x)[0])
    function.defvjp(value_and_slope, lambda slope, dy: (dy * slope,))
    return function


gelu = _keeping_slope(_gelu_and_slope)
gelu_tanh = _keeping_slope(_gelu_tanh_and_slope)


class FeedForwardLayer(nn.Module):
    """(B, T, D) to (B, T, D), by way of `cfg.hidden` units."""

    cfg: "ModelConfig"

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        cfg, ff = self.cfg, self.cfg.feedforward

        def project(name, site):
            layer = Projection((cfg.hidden,), ("embed",), ("mlp",), cfg.init_std, ff.bias, cfg.products, name=name)
            return tap(self, site, constrain(layer(x_BTD), "batch", "length", "mlp"))

        if isinstance(ff, Gated):
            function = partial(gated, ff.activation)
            if x_BTD.dtype != jnp.float32:
                # the backward pass makes again what lies between: kept, it would be as much as all three of them
                function = jax.checkpoint(function, prevent_cse=False)
            h_BTF = function(project("gate", "hook_pre"), project("up", "hook_pre_linear"))
        else:
            h_BTF = activate(project("up", "hook_pre"), ff.activation)
        h_BTF = tap(self, "hook_post", h_BTF)
        down = Projection((cfg.width,), ("mlp",), ("embed",), cfg.residual_std, ff.bias, cfg.products, name="down")
        return constrain(down(h_BTF), "batch", "stream", "embed")
