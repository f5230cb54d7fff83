"""An independent forward pass in NumPy and float64, one token at a time where that is clearer."""

import math

import numpy as np

from lmjax.models.feedforward import Gated
from lmjax.models.norms import LayerNorm
from lmjax.models.positions import Learned, Rotary


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def normalise(x, p, norm):
    if isinstance(norm, LayerNorm):
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + norm.epsilon) * p["scale"] + p.get("bias", 0.0)


def erf(x):
    return np.vectorize(math.erf)(x)


ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "relu_squared": lambda x: np.maximum(x, 0) ** 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def rotate(x_H, position, theta):
    H = len(x_H)
    out = np.empty(H)
    for i in range(H // 2):
        angle = position * theta ** (-2 * i / H)
        a, b = x_H[i], x_H[i + H // 2]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + H // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def attention(q_TNH, k_TKH, v_TKH, segments_T):
    T, N, H = q_TNH.shape
    G = N // k_TKH.shape[1]
    out = np.zeros((T, N, H))
    for t in range(T):
        seen = [s for s in range(t + 1) if segments_T[s] == segments_T[t]]
        for n in range(N):
            scores = np.array([q_TNH[t, n] @ k_TKH[s, n // G] / math.sqrt(H) for s in seen])
            out[t, n] = softmax(scores) @ v_TKH[seen, n // G]
    return out


def linear(x, p, axes=1):
    return np.tensordot(x, p["kernel"], axes) + p.get("bias", 0.0)


def logits(cfg, params, tokens_T, positions_T, segments_T):
    """(T, V) for one row."""
    import jax

    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x_TD = params["embedding"][tokens_T]
    if isinstance(cfg.positions, Learned):
        x_TD = x_TD + params["positions"][positions_T]
    for layer in range(cfg.layers):
        p = jax.tree.map(lambda x: x[layer], params["blocks"])
        a = p["attention"]
        h = normalise(x_TD, p["attention_norm"], cfg.norm)
        q, k, v = (linear(h, a[name]) for name in "qkv")
        if cfg.qk_norm:
            q, k = normalise(q, a["q_norm"], cfg.norm), normalise(k, a["k_norm"], cfg.norm)
        if isinstance(cfg.positions, Rotary):
            q, k = (
                np.array([[rotate(head, pos, cfg.positions.theta) for head in row] for row, pos in zip(x, positions_T)])
                for x in (q, k)
            )
        x_TD = x_TD + linear(attention(q, k, v, segments_T), a["out"], 2)
        h = normalise(x_TD, p["feedforward_norm"], cfg.norm)
        f, act = p["feedforward"], ACTIVATIONS[cfg.feedforward.activation]
        if isinstance(cfg.feedforward, Gated):
            h = act(linear(h, f["gate"])) * linear(h, f["up"])
        else:
            h = act(linear(h, f["up"]))
        x_TD = x_TD + linear(h, f["down"])
    x_TD = normalise(x_TD, params["final_norm"], cfg.norm)
    return x_TD @ params["embedding" if cfg.tied else "unembedding"].T
