"""A mixture of experts (arXiv:2401.04088, section 2.1): a token goes through the few experts that a router chooses."""

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.models.feedforward import activate
from lmjax.models.tap import tap
from lmjax.sharding import constrain, named

if TYPE_CHECKING:
    from lmjax.models.config import ModelConfig


def route(logits_RE: jax.Array, chosen: int) -> tuple[jax.Array, jax.Array]:
    """(weights_RC, experts_RC) of R tokens: the C most probable experts, their probabilities made to sum to 1."""
    # float32: two experts of nearly equal probability must not change places
    probability_RE = jax.nn.softmax(logits_RE.astype(jnp.float32), axis=-1)
    weights_RC, experts_RC = jax.lax.top_k(probability_RE, chosen)
    return weights_RC / weights_RC.sum(-1, keepdims=True), experts_RC


class ExpertsLayer(nn.Module):
    """(B, T, D) to (B, T, D). Tokens are sorted by expert, so that each expert is one product of its own tokens."""

    cfg: "ModelConfig"

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        cfg, ff = self.cfg, self.cfg.feedforward
        B, T, D = x_BTD.shape
        E, F, C = ff.count, cfg.hidden, ff.chosen

        def weight(name, shape, axes, std=cfg.init_std):
            return self.param(name, named(nn.initializers.normal(std), axes), shape).astype(x_BTD.dtype)

        x_RD = x_BTD.reshape(-1, D)
        router_DE = weight("router", (D, E), ("embed", None))
        logits_RE = tap(self, "hook_router", (x_RD @ router_DE).reshape(B, T, E)).reshape(-1, E)
        weights_RC, experts_RC = route(logits_RE, C)
        order_A = jnp.argsort(experts_RC.reshape(-1), stable=True)  # A = R C assignments, sorted by expert
        sizes_E = jnp.bincount(experts_RC.reshape(-1), length=E)
        x_AD = x_RD[order_A // C]

        def product(x_AI, name, shape, axes, **std):
            return jax.lax.ragged_dot(x_AI, weight(name, shape, axes, **std), sizes_E)

        gate_AF = product(x_AD, "gate", (E, D, F), ("experts", "embed", "mlp"))
        up_AF = product(x_AD, "up", (E, D, F), ("experts", "embed", "mlp"))
        h_AF = activate(gate_AF, ff.activation) * up_AF
        y_AD = product(h_AF, "down", (E, F, D), ("experts", "mlp", "embed"), std=cfg.residual_std)
        y_AD = y_AD * weights_RC.reshape(-1)[order_A, None].astype(y_AD.dtype)
        y_RD = jnp.zeros_like(x_RD).at[order_A // C].add(y_AD)
        return constrain(y_RD.reshape(B, T, D), "batch", "length", "embed")
