"""What the backward pass of a block keeps and what it computes again (`ModelConfig.remat`)."""

import jax
from jax.ad_checkpoint import checkpoint_name

from lmjax.models import splash
from lmjax.models.config import ModelConfig, Remat

# names of what a block may keep for its backward pass: its input, and attention's output before its projection
BLOCK_INPUT, ATTENDED = "block_input", "attended"


def keep(cfg: ModelConfig, name: str, x: jax.Array) -> jax.Array:
    """x itself, under a name that the policies of cfg.remat know; where nothing is recomputed this adds nothing."""
    return x if cfg.remat == "nothing" else checkpoint_name(x, name)


def policy(remat: Remat):
    """What jax.checkpoint keeps of a block beside its input, for every remat but "nothing"."""
    policies = jax.checkpoint_policies
    kernels = policies.save_only_these_names(ATTENDED, splash.SAVED)
    match remat:
        case "products":
            return policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, kernels)
        case "attention":
            return kernels
        case "everything":
            return policies.nothing_saveable
        case "offload":
            return policies.save_and_offload_only_these_names(
                names_which_can_be_saved=[], names_which_can_be_offloaded=[BLOCK_INPUT],
                offload_src="device", offload_dst="pinned_host",
            )  # fmt: skip
