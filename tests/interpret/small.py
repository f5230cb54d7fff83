"""Small models whose weights NumPy drew, biases and scales too: no program has to be compiled for them."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np

from lmjax.models import transformer
from lmjax.models.config import ModelConfig


def model_of(cfg: ModelConfig, *, apart: bool = True, seed: int = 0) -> SimpleNamespace:
    """As `lmjax.load` gives one, without a tokenizer."""
    rng = np.random.default_rng(seed)

    def draw(path, like):
        drawn = rng.normal(0, 0.2, like.shape).astype(np.float32)
        return drawn + 1 if path[-1].key == "scale" else drawn

    params = jax.tree_util.tree_map_with_path(draw, transformer.abstract_params(cfg))
    if apart:
        params = transformer.apart(params)
    return SimpleNamespace(cfg=cfg, params=params, tokenizer=None, path=Path("m"))
