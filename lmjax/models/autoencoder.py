"""A sparse autoencoder of what stands at one site of a model (arXiv:2309.08600; Anthropic, "Towards Monosemanticity",
2023, and its update of April 2024): x is nearly the sum of a few directions out of many, each as far as its feature is
active.

Before it a token's vector loses its mean and gets length sqrt(D), which is undone behind it (arXiv:2406.04093, section
2.1): so one penalty means the same at every site of every model.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.sharding import weight

if TYPE_CHECKING:
    from lmjax.models.config import ModelConfig

SITE = re.compile(r"blocks\.(\d+)\.(hook_(?:resid_pre|resid_mid|resid_post|attn_out|mlp_out)|mlp\.hook_post)")


@dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """site: by TransformerLens's name, of one vector a token: of the residual stream, what a layer adds to it, or
    within a feed-forward layer. features: how many. k: of each token only so many of the most active ones are kept
    (arXiv:2406.04093, eq. 1); None: all that are active, which a penalty makes few (`tasks.SparseAutoencoder.l1`)."""

    site: str
    features: int
    k: int | None = None

    def __post_init__(self):
        if not SITE.fullmatch(self.site):
            raise ValueError(
                f"autoencoder.site is {self.site!r}; expected blocks.N. with hook_resid_pre, hook_resid_mid, "
                "hook_resid_post, hook_attn_out, hook_mlp_out or mlp.hook_post"
            )
        if self.features < 1:
            raise ValueError(f"autoencoder.features is {self.features}; expected a positive number")
        if self.k is not None and not 1 <= self.k <= self.features:
            raise ValueError(f"autoencoder.k is {self.k}; expected 1 to {self.features}, the number of features")

    @property
    def layer(self) -> int:
        return int(SITE.fullmatch(self.site)[1])

    def width(self, cfg: "ModelConfig") -> int:
        """Of the vectors at the site."""
        return cfg.hidden if self.site.endswith("mlp.hook_post") else cfg.width


class Linear(nn.Module):
    """x W + b with these weights to begin with, b with 0."""

    axes: tuple[str, str]
    start: jax.nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array, shape: tuple[int, int]) -> jax.Array:
        kernel = weight(self, "kernel", self.start, self.axes, shape)
        return x @ kernel + weight(self, "bias", nn.initializers.zeros, self.axes[1:], shape[1:])


class AutoencoderLayer(nn.Module):
    """Called through `features` and `reconstructed` below. The encoder begins as the decoder transposed."""

    cfg: "ModelConfig"

    def setup(self):
        of = self.cfg.autoencoder
        shape = (of.features, of.width(self.cfg))
        # of random directions half are active; with this length they add up to about x from the first step on
        length = min(1.0, (2 * shape[1] / shape[0]) ** 0.5)
        # both are made of one draw
        key = self.make_rng("params") if self.is_initializing() else None

        def directions():
            x_FD = jax.random.normal(key, shape)
            return length * x_FD / jnp.linalg.norm(x_FD, axis=-1, keepdims=True)

        self.shape = shape
        self.encoder = Linear(("embed", "mlp"), lambda *_: directions().T)
        self.decoder = Linear(("mlp", "embed"), lambda *_: directions())

    def encode(self, x: jax.Array) -> jax.Array:
        active = jax.nn.relu(self.encoder(x, self.shape[::-1]))
        if self.cfg.autoencoder.k is None:
            return active
        least = jax.lax.top_k(active, self.cfg.autoencoder.k)[0][..., -1:]
        return jnp.where(active >= least, active, 0.0)

    def decode(self, active: jax.Array) -> jax.Array:
        return self.decoder(active, self.shape)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.decode(self.encode(x))


def standardised(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x without its mean and of length sqrt(D), that mean, that length / sqrt(D)), of each token; in float32."""
    x = x.astype(jnp.float32)
    mean = x.mean(axis=-1, keepdims=True)
    size = jnp.sqrt(jnp.square(x - mean).mean(axis=-1, keepdims=True) + 1e-12)
    return (x - mean) / size, mean, size


def features(cfg: "ModelConfig", params: dict, x: jax.Array) -> jax.Array:
    """(..., D) standardised to (..., F), 0 where a feature is not active. params: of the model."""
    return AutoencoderLayer(cfg).apply({"params": params["autoencoder"]}, x, method="encode")


def decoded(cfg: "ModelConfig", params: dict, active: jax.Array) -> jax.Array:
    """(..., F) to (..., D), standardised."""
    return AutoencoderLayer(cfg).apply({"params": params["autoencoder"]}, active, method="decode")


def directions(params: dict) -> jax.Array:
    """(F, D): what each feature adds."""
    return params["autoencoder"]["decoder"]["kernel"]


def reconstructed(cfg: "ModelConfig", params: dict, x: jax.Array) -> jax.Array:
    """What stands at the site by way of the features, (..., D) in its own dtype."""
    standard, mean, size = standardised(x)
    return (decoded(cfg, params, features(cfg, params, standard)) * size + mean).astype(x.dtype)
