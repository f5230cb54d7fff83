"""Two models, site by site: the first place where they part. Sites have TransformerLens's names (models/tap.py)."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.errors import UserError
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.models.positions import in_rows

# a wrong angle of rotary positions is small for short texts
TOKENS = 512


@dataclass(frozen=True)
class Site:
    """difference: the largest of all elements, over the largest magnitude that either model has there."""

    name: str
    difference: float
    magnitude: float


@dataclass(frozen=True)
class Report:
    """sites: all that both have, in the order of computation. tolerance: of `Site.difference`."""

    sites: list[Site]
    tolerance: float

    @property
    def parting(self) -> Site | None:
        """The first site where the two are not equal within the tolerance."""
        return next((site for site in self.sites if not site.difference <= self.tolerance), None)


def activations(cfg: ModelConfig, params: dict, tokens_BT: np.ndarray) -> dict[str, np.ndarray]:
    """What stands at every site, and "logits", in float32; heads side by side: (B, T, ...)."""
    run, names = _capture(cfg, tokens_BT.shape, isinstance(params["blocks"], tuple))
    values = run(params, tokens_BT)
    return dict(zip(names, map(np.asarray, values), strict=True))


@functools.cache
def _capture(cfg: ModelConfig, shape: tuple[int, int], apart: bool):
    """(the compiled function, the names of what it returns, in the order of computation). JAX sorts a dict that it
    returns; so the names are noted while it is traced."""
    names = []

    def run(params, tokens_BT):
        positions_BT, _ = in_rows(tokens_BT)
        hidden_BTD, sites = transformer.captured(cfg, params, tokens_BT, positions_BT)
        sites["logits"] = transformer.masked_logits(cfg, params, hidden_BTD)
        names[:] = sites
        return [x.reshape(*shape, -1).astype(jnp.float32) for x in sites.values()]

    return jax.jit(run), names


def compare(one: dict[str, np.ndarray], other: dict[str, np.ndarray], tolerance: float) -> Report:
    """Raises UserError where the two have no site in common, or one has another width."""
    sites = []
    for name, a in one.items():
        if name not in other:
            continue
        b = other[name]
        if name == "logits":
            # one vocabulary may have been filled up
            known = min(a.shape[-1], b.shape[-1])
            a, b = a[..., :known], b[..., :known]
        if a.shape != b.shape:
            raise UserError(f"the models differ in shape: at {name} {a.shape} and {b.shape}")
        magnitude = float(max(np.abs(a).max(), np.abs(b).max(), 1e-30))
        sites.append(Site(name, float(np.abs(a - b).max()) / magnitude, magnitude))
    if not sites:
        raise UserError("the models have no site in common")
    return Report(sites, tolerance)


def random_tokens(vocab: int, context: int) -> np.ndarray:
    """(1, T) ids, the same for every model of this vocabulary; T is TOKENS, or the context where that is shorter."""
    return np.random.default_rng(0).integers(0, vocab, (1, min(TOKENS, context))).astype(np.int32)
