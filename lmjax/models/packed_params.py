"""A whole model's parameters with packed matrices (models/packed.py)."""

import math

import jax.numpy as jnp

from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Experts
from lmjax.models.packed import Weights, pack


def pack_params(cfg: ModelConfig, params: dict, weights: Weights) -> dict:
    """Parameters whose layers lie apart, with all matrices packed; experts' in bfloat16 for either. "float32": as they
    are. The embedding stays float32: a token looks up one row of it."""
    if weights == "float32":
        return params
    matrix_VD = params["embedding" if cfg.tied else "unembedding"]
    rest = {name: value for name, value in params.items() if name not in ("blocks", "unembedding")}
    if cfg.encoder_layers:
        layers = tuple(_layer(cfg.encoder, layer, weights) for layer in params["encoder"]["blocks"])
        rest["encoder"] = params["encoder"] | {"blocks": layers}
    return rest | {
        "blocks": tuple(_layer(cfg, layer, weights) for layer in params["blocks"]),
        "packed_unembedding": pack(matrix_VD, weights),
    }


def _layer(cfg: ModelConfig, layer: dict, weights: Weights) -> dict:
    attention, feedforward = dict(layer["attention"]), layer["feedforward"]
    parts = [attention.pop(name) for name in ("q", "k", "v")]
    K = cfg.n_kv_heads
    # as AttentionLayer.project has them: a key's own queries beside it
    kernel_DKMH = jnp.concatenate([part["kernel"].reshape(cfg.width, K, -1, cfg.head_width) for part in parts], axis=2)
    attention["qkv"] = pack(kernel_DKMH.reshape(cfg.width, -1).T, weights)
    if cfg.bias:
        biases = [part["bias"].reshape(K, -1, cfg.head_width) for part in parts]
        attention["qkv_bias"] = jnp.concatenate(biases, axis=1).reshape(-1)
    attention["out"] = _projection(attention["out"], weights, inputs=2)
    layer = layer | {"attention": attention}
    if cfg.encoder_layers:
        cross = layer["cross_attention"]
        inputs = {"q": 1, "k": 1, "v": 1, "out": 2}
        packed = {name: _projection(cross[name], weights, inputs=axes) for name, axes in inputs.items()}
        layer = layer | {"cross_attention": cross | packed}
    if isinstance(cfg.feedforward, Experts):
        half = {name: feedforward[name].astype(jnp.bfloat16) for name in ("gate", "up", "down")}
        feedforward = feedforward | half
    else:
        feedforward = {name: _projection(part, weights, inputs=1) for name, part in feedforward.items()}
    return layer | {"feedforward": feedforward}


def _projection(part: dict, weights: Weights, *, inputs: int) -> dict:
    """The leaves of a Projection. inputs: how many axes of its kernel are contracted."""
    kernel = part["kernel"]
    size = math.prod(kernel.shape[:inputs])
    bias = {name: value for name, value in part.items() if name == "bias"}
    return {"packed": pack(kernel.reshape(size, -1).T, weights), **bias}
