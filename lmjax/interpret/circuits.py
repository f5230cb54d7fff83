"""What a head looks for and what it moves, as matrices (Elhage et al., 2021): its QK circuit W_Q W_K^T, whose bilinear
form of two tokens is their score, and its OV circuit W_V W_O, which maps what it reads to what it writes.

Both are D x D of rank H; their singular values come from factors, by QR, without the whole. Scales of norms, biases and
the angles of rotary positions, which are different at each distance, are left out.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.errors import UserError
from lmjax.interpret.attribution import check_plain
from lmjax.interpret.capture import Model
from lmjax.models import transformer
from lmjax.models.config import ModelConfig

Circuit = Literal["qk", "ov"]


@dataclass(frozen=True)
class Directions:
    """A circuit as sum_i values_i left_i right_i^T. values: (H,), falling. left, right: (H, D), rows of length 1. Of
    OV, what is read and what is then written; of QK, what a query and what a key that it looks at have."""

    values: np.ndarray
    left: np.ndarray
    right: np.ndarray


def singular_values(model: Model) -> dict[str, np.ndarray]:
    """{"qk", "ov"}: (L, N, H), of each head, in falling order. Of an encoder-decoder, of the decoder's own attention.
    Raises UserError for packed weights."""
    check_plain(model)
    return {name: np.asarray(_values(model.cfg, model.params, name)) for name in ("qk", "ov")}


def directions(model: Model, layer: int, head: int, circuit: Circuit) -> Directions:
    """Of one head. Raises UserError for one that there is not, for another circuit, and for packed weights."""
    check_plain(model)
    cfg = model.cfg
    for name, number, count in (("layer", layer, cfg.layers), ("head", head, cfg.heads)):
        if not 0 <= number < count:
            raise UserError(f"{name} {number}: expected 0 to {count - 1}")
    if circuit not in ("qk", "ov"):
        raise UserError(f"circuit {circuit!r}: expected qk or ov")
    weights = transformer.apart(model.params)["blocks"][layer]["attention"]
    left_DH, right_DH = (x[:, head] for x in factors(cfg, weights, circuit))
    return Directions(*(np.asarray(x) for x in svd(left_DH, right_DH)))


def factors(cfg: ModelConfig, weights: dict, circuit: Circuit) -> tuple[jax.Array, jax.Array]:
    """(left (D, N, H), right (D, N, H)) of a layer: each head's circuit is left @ right^T. Heads that share a key have
    it each."""
    if circuit == "qk":
        left_DNH, right_DKH = weights["q"]["kernel"], weights["k"]["kernel"]
        return left_DNH, jnp.repeat(right_DKH, cfg.heads // cfg.n_kv_heads, axis=1)
    left_DKH = weights["v"]["kernel"]
    return jnp.repeat(left_DKH, cfg.heads // cfg.n_kv_heads, axis=1), jnp.moveaxis(weights["out"]["kernel"], -1, 0)


def svd(left_DH: jax.Array, right_DH: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(values (H,), left (H, D), right (H, D)) of left @ right^T, falling; by an SVD of H x H."""
    (left_DH, of_left_HH), (right_DH, of_right_HH) = jnp.linalg.qr(left_DH), jnp.linalg.qr(right_DH)
    u_HH, values_H, v_HH = jnp.linalg.svd(of_left_HH @ of_right_HH.T)
    return values_H, (left_DH @ u_HH).T, v_HH @ right_DH.T


@partial(jax.jit, static_argnames=("cfg", "circuit"))
def _values(cfg: ModelConfig, params: dict, circuit: Circuit) -> jax.Array:
    layers = transformer.apart(params)["blocks"]
    pairs = [factors(cfg, weights["attention"], circuit) for weights in layers]
    left_LDNH, right_LDNH = (jnp.stack(side) for side in zip(*pairs, strict=True))
    of_head = lambda left_DH, right_DH: svd(left_DH, right_DH)[0]
    return jax.vmap(jax.vmap(of_head, in_axes=1))(left_LDNH, right_LDNH)
