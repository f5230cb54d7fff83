"""A Transformer block: attention, then the feed-forward layer, each added to the residual stream."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.models import attention
from lmjax.models.cache import LayerCache, append
from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import FeedForwardLayer
from lmjax.models.norms import Normalise
from lmjax.models.positions import rotate
from lmjax.models.projection import Projection, affine
from lmjax.sharding import constrain


class AttentionLayer(nn.Module):
    """Multi-head, grouped or multi-query attention; over the window itself, or over a cache."""

    cfg: ModelConfig
    training: bool

    def project(self, x_BTD):
        """Queries, keys and values by one matrix product, several times faster than three small ones on a CPU. A
        key's own G queries lie beside it, so that splitting heads over devices moves nothing."""
        cfg = self.cfg
        B, T, D = x_BTD.shape
        K, H, G = cfg.n_kv_heads, cfg.head_width, cfg.heads // cfg.n_kv_heads

        def weights(name, heads, axis):
            layer = Projection((heads, H), ("embed",), (axis, "head_dim"), cfg.init_std, cfg.bias, name=name)
            return layer.weights((D,))

        parts = [weights("q", cfg.heads, "heads"), weights("k", K, "kv_heads"), weights("v", K, "kv_heads")]
        kernel_DKMH = jnp.concatenate([kernel.reshape(D, K, -1, H) for kernel, _ in parts], axis=2).astype(x_BTD.dtype)
        bias = None
        if cfg.bias:
            bias = (
                jnp.concatenate([bias.reshape(K, -1, H) for _, bias in parts], axis=1).astype(x_BTD.dtype).reshape(-1)
            )
        y_BTKMH = affine(x_BTD, kernel_DKMH.reshape(D, -1), bias).reshape(B, T, K, G + 2, H)
        y_BTKMH = constrain(y_BTKMH, "batch", "length", "kv_heads", None, "head_dim")
        return y_BTKMH[:, :, :, :G].reshape(B, T, cfg.heads, H), y_BTKMH[:, :, :, G], y_BTKMH[:, :, :, G + 1]

    @nn.compact
    def __call__(self, x_BTD, positions_BT, segments_BT, angles, cache: LayerCache | None):
        cfg = self.cfg
        q_BTNH, k_BTKH, v_BTKH = self.project(x_BTD)
        if cfg.qk_norm:
            q_BTNH = Normalise(cfg.norm, "head_dim", name="q_norm")(q_BTNH)
            k_BTKH = Normalise(cfg.norm, "head_dim", name="k_norm")(k_BTKH)
        if angles is not None:
            q_BTNH, k_BTKH = rotate(q_BTNH, angles), rotate(k_BTKH, angles)
        if cache is None:
            key = self.make_rng("dropout") if self.training and cfg.dropout else None
            z_BTNH = attention.attend(q_BTNH, k_BTKH, v_BTKH, segments_BT, cfg.kernel, rate=cfg.dropout, key=key)
        else:
            cache = append(cache, k_BTKH, v_BTKH, positions_BT)
            # a slot holds the key of its own position: what lies after the query is either padding or not yet written
            mask_BTS = positions_BT[:, :, None] >= jnp.arange(cache.k_BSKH.shape[1])
            z_BTNH = attention.masked(q_BTNH, cache.k_BSKH, cache.v_BSKH, mask_BTS)
        out = Projection((cfg.width,), ("heads", "head_dim"), ("embed",), cfg.residual_std, cfg.bias, name="out")
        return constrain(out(z_BTNH), "batch", "length", "embed"), cache


class Block(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x)): pre-normalisation (GPT-2, section 2.3)."""

    cfg: ModelConfig
    training: bool

    @nn.compact
    def __call__(self, x_BTD, positions_BT, segments_BT, angles, cache: LayerCache | None):
        cfg = self.cfg
        drop = nn.Dropout(cfg.dropout, deterministic=not self.training)
        h_BTD = Normalise(cfg.norm, name="attention_norm")(x_BTD)
        h_BTD, cache = AttentionLayer(cfg, self.training, name="attention")(
            h_BTD, positions_BT, segments_BT, angles, cache
        )
        x_BTD = x_BTD + drop(h_BTD)
        h_BTD = FeedForwardLayer(cfg, name="feedforward")(Normalise(cfg.norm, name="feedforward_norm")(x_BTD))
        return x_BTD + drop(h_BTD), cache


def stack(cfg: ModelConfig, training: bool, name: str) -> nn.Module:
    """All blocks as one, their weights stacked on a leading axis of length L, whatever `unroll` and `remat` say."""
    block = Block
    if cfg.remat != "nothing":
        policies = {"products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "everything": None}
        # prevent_cse is for loops that XLA sees through; a scan is none
        block = nn.remat(block, policy=policies[cfg.remat], prevent_cse=cfg.unroll > 1)
    scanned = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),
        length=cfg.layers,
        unroll=min(cfg.unroll, cfg.layers),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(cfg, training, name=name)
