"""Training of a sparse autoencoder of what stands at one site of a frozen model (models/autoencoder.py)."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.batch import Batch
from lmjax.models import autoencoder, transformer
from lmjax.models.config import ModelConfig
from lmjax.models.tap import Patch
from lmjax.tasks.causal_lm import NextToken
from lmjax.tasks.loss import Loss, vocabulary_loss


@dataclass(frozen=True, kw_only=True)
class SparseAutoencoder(NextToken):
    """The squared error of the reconstruction and l1 times the sum over features of how active each is times the length
    of its direction (Anthropic, "Update on how we train SAEs", April 2024), per dimension of the site: 1 is the error
    of the mean alone. With model.autoencoder.k there is no need of l1."""

    l1: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.l1 < 0:
            raise ValueError(f"l1 is {self.l1}; expected 0 or more")

    def predicted(self, length: int) -> int:
        """No token's probability is computed in training."""
        return 0

    def training_loss(self, cfg: ModelConfig, params, batch: Batch, dropout_key) -> Loss:
        """As above, summed over the tokens that have one to predict. The model computes no further than the site."""
        x_BTD = jax.lax.stop_gradient(site_of(cfg, params, batch))
        standard_BTD, _, _ = autoencoder.standardised(x_BTD)
        return Loss(*self._sums(cfg, params, batch, standard_BTD)[:2])

    def _sums(self, cfg: ModelConfig, params, batch: Batch, x_BTD) -> tuple:
        """(objective, weight, the features, the reconstruction) of standardised vectors."""
        active_BTF = autoencoder.features(cfg, params, x_BTD)
        again_BTD = autoencoder.decoded(cfg, params, active_BTF)
        lengths_F = jnp.linalg.norm(autoencoder.directions(params), axis=-1)
        error_BT = jnp.square(again_BTD - x_BTD).mean(-1) + self.l1 / x_BTD.shape[-1] * active_BTF @ lengths_F
        return jnp.sum(error_BT * batch.weights_BT), batch.weights_BT.sum(), active_BTF, again_BTD

    def held_out_loss(self, cfg: ModelConfig, params, batch: Batch) -> Loss:
        """The objective; in `figures` the sums that `summary` takes."""
        weights_BT = batch.weights_BT
        x_BTD = site_of(cfg, params, batch)
        standard_BTD, mean_BT1, size_BT1 = autoencoder.standardised(x_BTD)
        total, weight, active_BTF, again_BTD = self._sums(cfg, params, batch, standard_BTD)
        again_BTD = again_BTD * size_BT1 + mean_BT1
        x_BTD = x_BTD.astype(jnp.float32)

        def summed(x_BT):
            return jnp.einsum("BT...,BT->...", x_BT, weights_BT)

        figures = {
            "error": summed(jnp.square(again_BTD - x_BTD).sum(-1)), "squares": summed(jnp.square(x_BTD).sum(-1)),
            "sum": summed(x_BTD), "weight": weight, "active": summed((active_BTF > 0).sum(-1).astype(jnp.float32)),
            "times": summed((active_BTF > 0).astype(jnp.float32)),
        }  # fmt: skip
        # the compiler would compute what follows from a constant itself, which takes it long
        zero = jax.lax.optimization_barrier(jnp.zeros(()))
        values = {"model_loss": None, "model_loss_reconstructed": again_BTD, "model_loss_zeroed": zero}
        figures |= {name: self._nats(cfg, params, batch, value) for name, value in values.items()}
        return Loss(total, weight, figures=figures)

    def _nats(self, cfg: ModelConfig, params, batch: Batch, value: jax.Array | None) -> jax.Array:
        """Of the model's tokens, where this stands at the site; None: what stands there."""
        patches = {} if value is None else {cfg.autoencoder.site: Patch(value)}
        rows = (batch.tokens_BT, batch.positions_BT, batch.segments_BT)
        hidden_BTD, _ = transformer.captured(cfg, params, *rows, patches=patches)
        chunk = self.chunk(*batch.targets_BT.shape, cfg.vocab)
        matrix_VD, cap = transformer.unembedding(cfg, params), cfg.logit_cap
        return vocabulary_loss(hidden_BTD, matrix_VD, batch.targets_BT, batch.weights_BT, chunk=chunk, cap=cap).total

    def summary(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        """explained: share of the variance over all tokens that the reconstruction has. active: features a token (L0).
        dead: share of the features that no token had. model_loss: nats a token of the model as it is, with the
        reconstruction at the site, and with 0 there; recovered: how far the second is from the third to the first."""
        weight = sums["weight"]
        variance = sums["squares"] - np.square(sums["sum"]).sum() / weight
        names = ("model_loss", "model_loss_reconstructed", "model_loss_zeroed")
        loss, again, zeroed = losses = [sums[name] / weight for name in names]
        figures = {
            "explained": 1 - sums["error"] / variance, "active": sums["active"] / weight,
            "dead": np.mean(sums["times"] == 0), **dict(zip(names, losses, strict=True)),
            "recovered": (zeroed - again) / (zeroed - loss),
        }  # fmt: skip
        return {name: float(value) for name, value in figures.items()}


def site_of(cfg: ModelConfig, params, batch: Batch) -> jax.Array:
    """What stands at the autoencoder's site, (B, T, D), by the layers up to it; of layers that are stacked."""
    layers = cfg.autoencoder.layer + 1
    blocks = jax.tree.map(lambda x: x[:layers], params["blocks"])
    rows = (batch.tokens_BT, batch.positions_BT, batch.segments_BT)
    _, sites = transformer.captured(replace(cfg, layers=layers), params | {"blocks": blocks}, *rows)
    return sites[cfg.autoencoder.site]
