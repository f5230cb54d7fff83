"""A Transformer block: attention, then the feed-forward layer, each added to the residual stream."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.models import attention
from lmjax.models.cache import LayerCache, append
from lmjax.models.config import ModelConfig
from lmjax.models.cross_attention import CrossAttentionLayer, Source
from lmjax.models.feedforward import Experts, FeedForwardLayer
from lmjax.models.lora import merged_layer
from lmjax.models.moe import ExpertsLayer
from lmjax.models.norms import Normalise
from lmjax.models.packed import product
from lmjax.models.positions import rotate
from lmjax.models.projection import Projection, mapped
from lmjax.models.remat import ATTENDED, BLOCK_INPUT, keep, policy
from lmjax.models.tap import PATCHES, PATTERNS, TAPS, shows_patterns, tap
from lmjax.sharding import constrain


class Seen(NamedTuple):
    """What all layers know of the tokens. angles: cos and sin for each Span of the pattern, or None. counted_BT: which
    tokens the routers of experts are to count, in training; None: this is no training, or there are no experts.
    bias_BNTS: what relative positions add to the scores; B or 1. source: of a decoder that has an encoder."""

    positions_BT: jax.Array
    segments_BT: jax.Array | None
    angles: tuple
    counted_BT: jax.Array | None = None
    bias_BNTS: jax.Array | None = None
    source: Source | None = None


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

        if self.has_variable("params", "qkv"):
            y = product(x_BTD, self.get_variable("params", "qkv"))
            y = (y + self.get_variable("params", "qkv_bias") if cfg.bias else y).astype(x_BTD.dtype)
        else:
            parts = [weights("q", cfg.heads, "heads"), weights("k", K, "kv_heads"), weights("v", K, "kv_heads")]
            kernel_DKMH = jnp.concatenate([kernel.reshape(D, K, -1, H) for kernel, _ in parts], axis=2)
            bias = None
            if cfg.bias:
                bias = jnp.concatenate([bias.reshape(K, -1, H) for _, bias in parts], axis=1)
                bias = bias.astype(x_BTD.dtype).reshape(-1)
            y = mapped(x_BTD, kernel_DKMH.astype(x_BTD.dtype).reshape(D, -1), bias, cfg.products)
        y_BTKMH = y.reshape(B, T, K, G + 2, H)
        y_BTKMH = constrain(y_BTKMH, "batch", "length", "kv_heads", None, "head_dim")
        return y_BTKMH[:, :, :, :G].reshape(B, T, cfg.heads, H), y_BTKMH[:, :, :, G], y_BTKMH[:, :, :, G + 1]

    @nn.compact
    def __call__(self, x_BTD, seen: Seen, layer, cache: LayerCache | None):
        cfg = self.cfg
        q_BTNH, k_BTKH, v_BTKH = self.project(x_BTD)
        q_BTNH, k_BTKH = tap(self, "hook_q", q_BTNH), tap(self, "hook_k", k_BTKH)
        v_BTKH = tap(self, "hook_v", v_BTKH)
        if cfg.qk_norm:
            q_BTNH = Normalise(cfg.norm, "head_dim", name="q_norm")(q_BTNH)
            k_BTKH = Normalise(cfg.norm, "head_dim", name="k_norm")(k_BTKH)
        key = self.make_rng("dropout") if self.training and cfg.dropout else None
        if cache is None and shows_patterns(self):
            scores_BNTS = of_kind(cfg, layer, scored, q_BTNH, k_BTKH, seen, layer)
            scores_BNTS = tap(self, "hook_attn_scores", scores_BNTS, PATTERNS)
            pattern_BNTS = tap(self, "hook_pattern", jax.nn.softmax(scores_BNTS, axis=-1), PATTERNS)
            z_BTNH = attention.mixed(pattern_BNTS, v_BTKH)
        else:
            z_BTNH, cache = of_kind(cfg, layer, partial(look, key=key), q_BTNH, k_BTKH, v_BTKH, seen, layer, cache)
        # under two names the same numbers would be kept twice
        if cfg.remat != "nothing" and not (cache is None and attention.names_its_output(cfg, z_BTNH.shape[1])):
            z_BTNH = keep(cfg, ATTENDED, z_BTNH)
        out = Projection(
            (cfg.width,), ("heads", "head_dim"), ("embed",), cfg.residual_std, cfg.has_out_bias, cfg.products,
            name="out",
        )  # fmt: skip
        return constrain(out(tap(self, "hook_z", z_BTNH)), "batch", "stream", "embed"), cache


def of_kind(cfg: ModelConfig, layer, function: Callable, *arguments):
    """function(cfg, kind, *arguments) with the number of the Span in the pattern that this layer has."""
    kind = layer % len(cfg.pattern)
    if isinstance(kind, int) or len(cfg.pattern) == 1:
        return function(cfg, kind if isinstance(kind, int) else 0, *arguments)
    return jax.lax.switch(kind, [partial(function, cfg, kind) for kind in range(len(cfg.pattern))], *arguments)


def turned(seen: Seen, kind: int, q_BTNH, k_BTKH):
    """Queries and keys by the angles of that kind of layer, where it has any."""
    angles = seen.angles[kind]
    return (q_BTNH, k_BTKH) if angles is None else (rotate(q_BTNH, angles), rotate(k_BTKH, angles))


def scored(cfg: ModelConfig, kind: int, q_BTNH, k_BTKH, seen: Seen, layer):
    """What the softmax is taken of, (B, N, T, S) in float32, -inf where a query does not see a key."""
    q_BTNH, k_BTKH = turned(seen, kind, q_BTNH, k_BTKH)
    slots_T = jnp.arange(q_BTNH.shape[1])
    mask_BTS = attention.visible(slots_T[None], slots_T, cfg.pattern[kind].window, cfg.causal)
    if seen.segments_BT is not None:
        mask_BTS = mask_BTS & (seen.segments_BT[:, :, None] == seen.segments_BT[:, None])
    q_BTNH = q_BTNH * attention.scale_of(cfg, layer, q_BTNH.dtype)
    return attention.scores(q_BTNH, k_BTKH, mask_BTS, cap=cfg.score_cap, bias_BNTS=seen.bias_BNTS)


def look(
    cfg: ModelConfig, kind: int, q_BTNH, k_BTKH, v_BTKH, seen: Seen, layer, cache: LayerCache | None, *, key
):  # fmt: skip
    """Attention as the Span of that number in the pattern has it: (z_BTNH, cache)."""
    window = cfg.pattern[kind].window
    q_BTNH, k_BTKH = turned(seen, kind, q_BTNH, k_BTKH)
    scale = attention.scale_of(cfg, layer, q_BTNH.dtype)
    if cache is None:
        z_BTNH = attention.attend(
            q_BTNH, k_BTKH, v_BTKH, seen.segments_BT, cfg.kernel,
            scale=scale, cap=cfg.score_cap, window=window, causal=cfg.causal, bias_BNTS=seen.bias_BNTS,
            rate=cfg.dropout, key=key,
        )  # fmt: skip
        return z_BTNH, None
    cache = append(cache, k_BTKH, v_BTKH, seen.positions_BT)

    ends = cache.ends

    def over(segments, q_BTNH, cache):
        # a slot holds the key of its own position: what lies after the query is either padding or not yet written
        mask_BTS = attention.visible(seen.positions_BT, jnp.arange(ends[segments - 1]), window)
        bias_BNTS = None if seen.bias_BNTS is None else seen.bias_BNTS[..., : ends[segments - 1]]
        return attention.over_segments(
            q_BTNH, cache.keys[:segments], cache.values[:segments], mask_BTS, cap=cfg.score_cap, bias_BNTS=bias_BNTS
        )

    # only as much of the cache is read as is filled, by one of a few programs
    last = jnp.max(jnp.where(seen.positions_BT < ends[-1], seen.positions_BT, 0))
    branch = jnp.searchsorted(jnp.array(ends), last, side="right", method="compare_all")
    branches = [partial(over, 1 + i) for i in range(len(ends))]
    return jax.lax.switch(branch, branches, q_BTNH * scale, cache), cache


class Block(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x)): pre-normalisation (GPT-2, section 2.3); or norm(x +
    attention(x)), then norm(x + feedforward(x)). Between the two, in the same way, attention to an encoder's tokens,
    where there is an encoder. layer: its number, from 0; a number of Python's where the layers are
    not scanned. Returns (x_BTD, (cache, routing))."""

    cfg: ModelConfig
    training: bool

    @nn.compact
    def __call__(self, x_BTD, seen: Seen, layer, cache: LayerCache | None):
        cfg = self.cfg
        drop = nn.Dropout(cfg.dropout, deterministic=not self.training)

        def norm(x_BTD, name):
            return Normalise(cfg.norm, name=name)(x_BTD)

        def first(x_BTD, name):
            return norm(x_BTD, name) if cfg.norm_first else x_BTD

        def last(x_BTD, name):
            return x_BTD if cfg.norm_first else norm(x_BTD, name)

        def added(x_BTD, name):
            return drop(norm(x_BTD, f"{name}_post_norm") if cfg.post_norms else x_BTD)

        x_BTD = constrain(tap(self, "hook_resid_pre", x_BTD), "batch", "stream", "embed")
        x_BTD = keep(cfg, BLOCK_INPUT, x_BTD)
        h_BTD, cache = AttentionLayer(cfg, self.training, name="attention")(
            first(x_BTD, "attention_norm"), seen, layer, cache
        )
        middle_BTD = last(x_BTD + tap(self, "hook_attn_out", added(h_BTD, "attention")), "attention_norm")
        if cfg.encoder_layers:
            middle_BTD = tap(self, "hook_resid_mid_cross", middle_BTD)
            h_BTD = CrossAttentionLayer(cfg, self.training, name="cross_attention")(
                first(middle_BTD, "cross_attention_norm"), seen.source, seen.segments_BT, layer, cache and cache.source
            )
            h_BTD = tap(self, "hook_cross_attn_out", added(h_BTD, "cross_attention"))
            middle_BTD = last(middle_BTD + h_BTD, "cross_attention_norm")
        if not cfg.parallel:
            x_BTD = tap(self, "hook_resid_mid", middle_BTD)
        h_BTD, routing = first(x_BTD, "feedforward_norm"), None
        if isinstance(cfg.feedforward, Experts):
            h_BTD, routing = ExpertsLayer(cfg, name="feedforward")(h_BTD, seen.counted_BT)
        else:
            h_BTD = FeedForwardLayer(cfg, name="feedforward")(h_BTD)
        x_BTD = last(middle_BTD + tap(self, "hook_mlp_out", added(h_BTD, "feedforward")), "feedforward_norm")
        return tap(self, "hook_resid_post", x_BTD), (cache, routing)


def stack(cfg: ModelConfig, training: bool, name: str, *, adapted: bool = False) -> nn.Module:
    """All blocks as one, their weights stacked on a leading axis of length L, whatever `unroll` and `remat` say.
    adapted: whether some of them have an adapter (`lora.Adapted`)."""
    block = Block
    if adapted:
        block = nn.map_variables(block, "params", trans_in_fn=merged_layer)
    if cfg.remat != "nothing":
        # prevent_cse is for loops that XLA sees through; a scan is none
        block = nn.remat(block, policy=policy(cfg.remat), prevent_cse=cfg.unroll > 1)
    scanned = nn.scan(
        block,
        variable_axes={"params": 0, TAPS: 0, PATTERNS: 0, PATCHES: 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast, 0, 0),
        length=cfg.layers,
        unroll=min(cfg.unroll, cfg.layers),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(cfg, training, name=name)
