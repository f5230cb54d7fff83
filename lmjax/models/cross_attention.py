"""Attention of a decoder's tokens to those of an encoder (arXiv:1706.03762, section 3.2.3)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.models import attention
from lmjax.models.cache import SourceKeys
from lmjax.models.config import ModelConfig
from lmjax.models.norms import Normalise
from lmjax.models.projection import Projection
from lmjax.models.remat import ATTENDED, keep
from lmjax.models.tap import PATTERNS, shows_patterns, tap
from lmjax.sharding import constrain


class Source(NamedTuple):
    """What a decoder attends to: the encoder's hidden vectors (`transformer.encode`). segments_BS: a target token of
    segment i sees the source tokens of segment i, one of a row without segments all but segment 0, which is padding and
    is seen by nobody; None: all are seen."""

    hidden_BSD: jax.Array
    segments_BS: jax.Array | None = None


def seen_of(source: Source, segments_BT: jax.Array | None, T: int) -> jax.Array:
    """(B or 1, T, S): which source token each target token sees."""
    S = source.hidden_BSD.shape[1]
    if source.segments_BS is None:
        return jnp.ones((1, T, S), bool)
    segments_B1S = source.segments_BS[:, None]
    mask_BTS = segments_B1S != 0
    if segments_BT is not None:
        mask_BTS = mask_BTS & (segments_BT[:, :, None] == segments_B1S)
    return jnp.broadcast_to(mask_BTS, (len(mask_BTS), T, S))


class CrossAttentionLayer(nn.Module):
    """Heads, their norms, the scale and the cap of scores as self-attention has them; no positions."""

    cfg: ModelConfig
    training: bool

    def setup(self):
        cfg = self.cfg

        def project(heads, axis):
            out, axes = (heads, cfg.head_width), (axis, "head_dim")
            return Projection(out, ("embed",), axes, cfg.init_std, cfg.bias, cfg.products)

        self.q, self.k = project(cfg.heads, "heads"), project(cfg.n_kv_heads, "kv_heads")
        self.v = project(cfg.n_kv_heads, "kv_heads")
        self.out = Projection(
            (cfg.width,), ("heads", "head_dim"), ("embed",), cfg.residual_std, cfg.has_out_bias, cfg.products
        )
        if cfg.qk_norm:
            self.q_norm, self.k_norm = Normalise(cfg.norm, "head_dim"), Normalise(cfg.norm, "head_dim")

    def keys_values(self, hidden_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(B, S, K, H) each."""
        k_BSKH, v_BSKH = self.k(hidden_BSD), self.v(hidden_BSD)
        if self.cfg.qk_norm:
            k_BSKH = self.k_norm(k_BSKH)
        k_BSKH, v_BSKH = tap(self, "hook_k", k_BSKH), tap(self, "hook_v", v_BSKH)
        # every device needs all keys of its rows
        return tuple(constrain(x, "batch", None, "kv_heads", "head_dim") for x in (k_BSKH, v_BSKH))

    def kept(self, source: Source) -> SourceKeys:
        """What a cache keeps of the source."""
        keys, values = (x.swapaxes(1, 2) for x in self.keys_values(source.hidden_BSD))
        B, S, _ = source.hidden_BSD.shape
        there_BS = jnp.ones((B, S), bool) if source.segments_BS is None else source.segments_BS != 0
        return SourceKeys(keys, values, there_BS)

    def by_pattern(self, q_BTNH, k_BSKH, v_BSKH, mask_BTS):
        """Attention by the formula as it stands, whose weights can be looked at; a query without a key gets zeros."""
        some_BT = mask_BTS.any(axis=-1)
        scores_BNTS = attention.scores(q_BTNH, k_BSKH, mask_BTS | ~some_BT[..., None], cap=self.cfg.score_cap)
        pattern_BNTS = jax.nn.softmax(tap(self, "hook_attn_scores", scores_BNTS, PATTERNS), axis=-1)
        pattern_BNTS = jnp.where(some_BT[:, None, :, None], pattern_BNTS, 0.0)
        return attention.mixed(tap(self, "hook_pattern", pattern_BNTS, PATTERNS), v_BSKH)

    def __call__(self, x_BTD, source: Source | None, segments_BT, layer, kept: SourceKeys | None):
        """x_BTD: of the decoder. With what a cache keeps, the source is not read again."""
        cfg = self.cfg
        q_BTNH = self.q(x_BTD)
        q_BTNH = tap(self, "hook_q", self.q_norm(q_BTNH) if cfg.qk_norm else q_BTNH)
        q_BTNH = constrain(q_BTNH, "batch", "length", "heads", "head_dim")
        scale = attention.scale_of(cfg, layer, q_BTNH.dtype)
        if kept is None:
            key = self.make_rng("dropout") if self.training and cfg.dropout else None
            mask_BTS = seen_of(source, segments_BT, x_BTD.shape[1])
            k_BSKH, v_BSKH = self.keys_values(source.hidden_BSD)
            if shows_patterns(self):
                z_BTNH = self.by_pattern(q_BTNH * scale, k_BSKH, v_BSKH, mask_BTS)
            else:
                z_BTNH = attention.attend_source(
                    q_BTNH, k_BSKH, v_BSKH, mask_BTS, cfg.kernel,
                    scale=scale, cap=cfg.score_cap, rate=cfg.dropout, key=key,
                )  # fmt: skip
        else:
            # rows that share a source are its queries side by side
            q = (q_BTNH * scale).reshape(len(kept.there_BS), -1, *q_BTNH.shape[2:])
            z = attention.over_segments(
                q, (kept.keys_BKSH,), (kept.values_BKSH,), kept.there_BS[:, None], cap=cfg.score_cap
            )
            z_BTNH = z.reshape(q_BTNH.shape)
        return constrain(self.out(tap(self, "hook_z", keep(cfg, ATTENDED, z_BTNH))), "batch", "stream", "embed")
