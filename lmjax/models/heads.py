"""What stands on hidden vectors beside the unembedding: of an encoder (BERT, arXiv:1810.04805, sections 3 and A.1), and
of any model that is to label texts."""

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.models.feedforward import activate
from lmjax.models.norms import Normalise
from lmjax.models.projection import Projection
from lmjax.sharding import weight

if TYPE_CHECKING:
    from lmjax.models.config import ModelConfig


class MaskedHead(nn.Module):
    """norm(activation(x W + b)), which is multiplied by the unembedding, and what is added to the logits then."""

    cfg: "ModelConfig"

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(..., D) to (..., D) and the bias (V,) in float32."""
        cfg = self.cfg
        bias_V = weight(self, "bias", nn.initializers.zeros, ("vocab",), (cfg.vocab,))
        dense = Projection((cfg.width,), ("embed",), (None,), cfg.init_std, True, name="dense")
        x = activate(dense(x), cfg.masked_head)
        return Normalise(cfg.norm, name="norm")(x), bias_V


class Pooler(nn.Module):
    """tanh(x W + b), of a text's first token."""

    cfg: "ModelConfig"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) to (..., D)."""
        cfg = self.cfg
        return jnp.tanh(Projection((cfg.width,), ("embed",), (None,), cfg.init_std, True, name="dense")(x))


class Outputs(nn.Module):
    """x W + b to cfg.outputs numbers in float32. A causal model has no b, as transformers' heads of such models."""

    cfg: "ModelConfig"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) to (..., C)."""
        cfg = self.cfg
        dense = Projection((cfg.outputs,), ("embed",), (None,), cfg.init_std, not cfg.causal, name="dense")
        return dense(x).astype(jnp.float32)
