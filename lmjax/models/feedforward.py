"""The feed-forward layer: Dense (GPT-2) or Gated (GLU variants, arXiv:2002.05202)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.models.projection import Projection
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

    def default_width(self, model_width: int) -> int:
        return 4 * model_width


@dataclass(frozen=True, kw_only=True)
class Gated:
    """(activation(x W_gate) * x W_up) W_down. width: None takes 8/3 D, the parameters of Dense, rounded up to a
    multiple of 64."""

    width: int | None = None
    activation: Activation = "silu"
    bias: bool = False

    def default_width(self, model_width: int) -> int:
        return -(-8 * model_width // (3 * 64)) * 64


FeedForward = Dense | Gated


def activate(x: jax.Array, name: Activation) -> jax.Array:
    """gelu is the exact one, with erf (arXiv:1606.08415); gelu_tanh its approximation, GPT-2's."""
    match name:
        case "gelu":
            return jax.nn.gelu(x, approximate=False)
        case "gelu_tanh":
            return jax.nn.gelu(x, approximate=True)
        case "relu":
            return jax.nn.relu(x)
        case "relu_squared":
            return jnp.square(jax.nn.relu(x))
        case "silu":
            return jax.nn.silu(x)


class FeedForwardLayer(nn.Module):
    cfg: "ModelConfig"

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        cfg, ff = self.cfg, self.cfg.feedforward

        def project(name):
            layer = Projection((cfg.hidden,), ("embed",), ("mlp",), cfg.init_std, ff.bias, name=name)
            return constrain(layer(x_BTD), "batch", "length", "mlp")

        if isinstance(ff, Gated):
            h_BTF = activate(project("gate"), ff.activation) * project("up")
        else:
            h_BTF = activate(project("up"), ff.activation)
        down = Projection((cfg.width,), ("mlp",), ("embed",), cfg.residual_std, ff.bias, name="down")
        return constrain(down(h_BTF), "batch", "length", "embed")
