"""What a head looks for and what it moves, as matrices (Elhage et al., 2021): its QK circuit W_Q W_K^T, whose bilinear
form of two tokens is their score, and its OV circuit W_V W_O, which maps what it reads to what it writes.

Both are D x D of rank H; their singular values come from factors, without the whole, by NumPy in float64. Scales of
norms, biases and the angles of rotary positions, which are different at each distance, are left out.
"""

from dataclasses import dataclass
from typing import Literal

import jax
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
    layers = [weights["attention"] for weights in transformer.apart(model.params)["blocks"]]
    return {circuit: np.stack([_values(model.cfg, layer, circuit) for layer in layers]) for circuit in ("qk", "ov")}


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
    left_NDH, right_NDH = factors(cfg, weights, circuit)
    (left_DH, of_left_HH), (right_DH, of_right_HH) = np.linalg.qr(left_NDH[head]), np.linalg.qr(right_NDH[head])
    u_HH, values_H, v_HH = np.linalg.svd(of_left_HH @ of_right_HH.T)
    return Directions(values_H, (left_DH @ u_HH).T, v_HH @ right_DH.T)


def factors(cfg: ModelConfig, weights: dict, circuit: Circuit) -> tuple[np.ndarray, np.ndarray]:
    """(left, right) of a layer's attention, (N, D, H) each: a head's circuit is left @ right^T. Heads that share a key
    have it each."""
    kernel = {name: np.asarray(jax.device_get(weights[name]["kernel"]), np.float64) for name in ("q", "k", "v", "out")}
    shared = lambda x_DKH: np.repeat(np.moveaxis(x_DKH, 1, 0), cfg.heads // cfg.n_kv_heads, axis=0)
    if circuit == "qk":
        return np.moveaxis(kernel["q"], 1, 0), shared(kernel["k"])
    return shared(kernel["v"]), kernel["out"].swapaxes(1, 2)


def _values(cfg: ModelConfig, weights: dict, circuit: Circuit) -> np.ndarray:
    left_NHH, right_NHH = (_root(side_NDH) for side_NDH in factors(cfg, weights, circuit))
    return np.linalg.svd(left_NHH @ right_NHH.swapaxes(1, 2), compute_uv=False)


def _root(x_NDH: np.ndarray) -> np.ndarray:
    """R (N, H, H) with R^T R = x^T x, as QR's is: of H x H alone, since LAPACK's QR of a few hundred tall matrices
    takes seconds. What float64 loses by the squares is 1e-8 of the largest value."""
    squares_NH, v_NHH = np.linalg.eigh(x_NDH.swapaxes(1, 2) @ x_NDH)
    return np.sqrt(np.maximum(squares_NH, 0.0))[:, :, None] * v_NHH.swapaxes(1, 2)
