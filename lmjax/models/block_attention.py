"""Attention by blocks of queries, its gradient written out: what JAX derives adds the blocks' gradients of keys and
values in one loop that is slow on a CPU, and sums over keys where a sum over a head's width does (arXiv:2205.14135,
appendix B)."""

from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(spans, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, masks) -> jax.Array:
    """(B, T, N, H). spans: for each block (start, stop) of its queries and (first, last) of its keys.
    masks: for each block which query sees which key, (B or 1, T, S) of the block. q is scaled already."""
    return _forward(spans, q_BTNH, k_BSKH, v_BSKH, masks)[0]


def _product(x_BKRI, y, axis: int) -> jax.Array:
    """The last axis of x contracted with that axis of y (B, K, ., .), in float32."""
    return jax.lax.dot_general(x_BKRI, y, (((3,), (axis,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)


def _heads_first(x_BTNH: jax.Array, K: int) -> jax.Array:
    """(B, K, T, G, H): the G queries of a key are rows side by side."""
    B, T, N, H = x_BTNH.shape
    return jnp.swapaxes(x_BTNH.reshape(B, T, K, N // K, H), 1, 2).reshape(B, K, T * N // K, H)


def _heads_last(x_BKRH: jax.Array, T: int) -> jax.Array:
    B, K, R, H = x_BKRH.shape
    return jnp.swapaxes(x_BKRH.reshape(B, K, T, R // T, H), 1, 2).reshape(B, T, K * R // T, H)


def _forward(spans, q_BTNH, k_BSKH, v_BSKH, masks):
    K = k_BSKH.shape[2]
    G = q_BTNH.shape[2] // K
    q_BKRH, k_BKSH, v_BKSH = (_heads_first(x, K) for x in (q_BTNH, k_BSKH, v_BSKH))
    parts, kept = [], []
    for (start, stop, first, last), mask_BTS in zip(spans, masks, strict=True):
        mask_BKRS = jnp.repeat(mask_BTS, G, axis=1)[:, None]
        scores_BKRS = _product(q_BKRH[:, :, start * G : stop * G], k_BKSH[:, :, first:last], 3)
        scores_BKRS = jnp.where(mask_BKRS, scores_BKRS, -jnp.inf)
        # softmax in float32; divided by its sum after the product, which is narrower
        raised_BKRS = jnp.exp(scores_BKRS - scores_BKRS.max(-1, keepdims=True))
        inverse_BKR1 = 1 / raised_BKRS.sum(-1, keepdims=True)
        raised_BKRS = raised_BKRS.astype(v_BSKH.dtype)
        parts.append((_product(raised_BKRS, v_BKSH[:, :, first:last], 2) * inverse_BKR1).astype(v_BSKH.dtype))
        kept.append((raised_BKRS, inverse_BKR1))
    z_BKRH = jnp.concatenate(parts, axis=2)
    return _heads_last(z_BKRH, q_BTNH.shape[1]), (q_BKRH, k_BKSH, v_BKSH, z_BKRH, kept)


def _backward(spans, saved, dz_BTNH):
    q_BKRH, k_BKSH, v_BKSH, z_BKRH, kept = saved
    K, S, T, dtype = k_BKSH.shape[1], k_BKSH.shape[2], dz_BTNH.shape[1], q_BKRH.dtype
    dz_BKRH, G = _heads_first(dz_BTNH, K), q_BKRH.shape[2] // T
    # of all weights times their gradients the sum over keys
    mean_BKR1 = jnp.sum(dz_BKRH.astype(jnp.float32) * z_BKRH.astype(jnp.float32), axis=-1, keepdims=True)
    dq_BKRH, dk_BKSH, dv_BKSH = (jnp.zeros(x.shape, jnp.float32) for x in (q_BKRH, k_BKSH, v_BKSH))
    for (start, stop, first, last), (raised_BKRS, inverse_BKR1) in zip(spans, kept, strict=True):
        rows, keys = slice(start * G, stop * G), slice(first, last)
        dz = dz_BKRH[:, :, rows]
        slope_BKRS = inverse_BKR1 * (_product(dz, v_BKSH[:, :, keys], 3) - mean_BKR1[:, :, rows])
        d_scores_BKRS = (raised_BKRS.astype(jnp.float32) * slope_BKRS).astype(dtype)
        dq_BKRH = dq_BKRH.at[:, :, rows].set(_product(d_scores_BKRS, k_BKSH[:, :, keys], 2))
        dk_BKSH = dk_BKSH.at[:, :, keys].add(_over_rows(d_scores_BKRS, q_BKRH[:, :, rows]))
        dv_BKSH = dv_BKSH.at[:, :, keys].add(_over_rows(raised_BKRS, (dz * inverse_BKR1).astype(dtype)))
    gradients = (dq_BKRH, T), (dk_BKSH, S), (dv_BKSH, S)
    return *(_heads_last(x.astype(dtype), length) for x, length in gradients), None


def _over_rows(x_BKRS, y_BKRH) -> jax.Array:
    return jax.lax.dot_general(x_BKRS, y_BKRH, (((2,), (2,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)


attend.defvjp(_forward, _backward)
