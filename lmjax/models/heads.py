"""What an encoder puts on its hidden vectors (BERT, arXiv:1810.04805, sections 3 and A.1)."""

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.models.feedforward import activate
from lmjax.models.norms import Normalise
from lmjax.models.projection import Projection
from lmjax.sharding import named

if TYPE_CHECKING:
    from lmjax.models.config import ModelConfig


class MaskedHead(nn.Module):
    """norm(activation(x W + b)), which is multiplied by the unembedding, and what is added to the logits then."""

    cfg: "ModelConfig"

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(..., D) to (..., D) and the bias (V,) in float32."""
        cfg = self.cfg
        bias_V = self.param("bias", named(nn.initializers.zeros, ("vocab",)), (cfg.vocab,))
        dense = Projection((cfg.width,), ("embed",), (None,), cfg.init_std, True, name="dense")
        x = activate(dense(x), cfg.masked_head)
        return Normalise(cfg.norm, name="norm")(x), bias_V


class Pooler(nn.Module):
    """tanh(x_0 W + b) of a row's first token."""

    cfg: "ModelConfig"

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """(B, T, D) to (B, D)."""
        cfg = self.cfg
        return jnp.tanh(Projection((cfg.width,), ("embed",), (None,), cfg.init_std, True, name="dense")(x_BTD[:, 0]))
