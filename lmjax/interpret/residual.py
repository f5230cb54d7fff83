"""The residual stream between a model's blocks, and what its last norm and head read in it."""

import jax

from lmjax.interpret.capture import logits_of
from lmjax.models.config import ModelConfig
from lmjax.models.transformer import Transformer


def stream(cfg: ModelConfig) -> tuple[str, ...]:
    """Its sites: before the first block, and after each one."""
    return ("blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(cfg.layers)))


def read_out(cfg: ModelConfig, params: dict, x: jax.Array) -> jax.Array:
    """(..., D) to the logits (..., V), as if the last block had left it."""
    rest = {name: value for name, value in params.items() if name != "blocks"}
    return logits_of(cfg, params, Transformer(cfg).apply({"params": rest}, x, method="finish"))
