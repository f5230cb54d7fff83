"""An independent forward pass in NumPy and float64, one token at a time where that is clearer."""

import math

import numpy as np

from lmjax.models.feedforward import Gated
from lmjax.models.norms import LayerNorm
from lmjax.models.positions import Learned, Relative, Rotary


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


def feedforward(h, p, ff):
    act = ACTIVATIONS[ff.activation]
    h = act(linear(h, p["gate"])) * linear(h, p["up"]) if isinstance(ff, Gated) else act(linear(h, p["up"]))
    return linear(h, p["down"])


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
        x_TD = x_TD + feedforward(h, p["feedforward"], cfg.feedforward)
    x_TD = normalise(x_TD, params["final_norm"], cfg.norm)
    return x_TD @ params["embedding" if cfg.tied else "unembedding"].T


def log_p(cfg, params, tokens_T, targets_T):
    """(T,) of each target of one text alone."""
    T = len(tokens_T)
    logits_TV = logits(cfg, params, tokens_T, np.arange(T), np.ones(T))
    return np.log(softmax(logits_TV))[np.arange(T), targets_T]


def bucket(ahead: int, relative: Relative, both_ways: bool) -> int:
    """Mesh TensorFlow's _relative_position_bucket (transformer_layers.py), for one distance."""
    count, first = relative.buckets, 0
    if both_ways:
        count //= 2
        first = count if ahead > 0 else 0
    far = abs(ahead) if both_ways else max(-ahead, 0)
    if far < count // 2:
        return first + far
    grown = math.log(far / (count // 2)) / math.log(relative.distance / (count // 2)) * (count - count // 2)
    return first + min(count // 2 + int(grown), count - 1)


def two_stacks(cfg, params, source_S, target_T):
    """(T, V) of an encoder-decoder, for one pair: norms before or behind, relative or sinusoidal positions."""
    import jax

    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def attend(p, x_TD, y_SD, table, causal):
        q, k, v = linear(x_TD, p["q"]), linear(y_SD, p["k"]), linear(y_SD, p["v"])
        out = np.zeros(q.shape)
        for t in range(len(q)):
            seen = range(t + 1) if causal else range(len(k))
            for n in range(cfg.heads):
                scores = np.array([q[t, n] @ k[s, n] for s in seen]) * (cfg.score_scale or cfg.head_width**-0.5)
                if table is not None:
                    scores += [table[bucket(s - t, cfg.positions, not causal), n] for s in seen]
                out[t, n] = softmax(scores) @ v[list(seen), n]
        return linear(out, p["out"], 2)

    def stack(part, tokens, layers, y_SD):
        """y_SD: what is attended to, of the decoder."""
        causal = y_SD is not None
        x = params["embedding"][tokens] * (cfg.width**0.5 if cfg.scaled_embedding else 1)
        if not isinstance(cfg.positions, Relative):
            angles = np.arange(len(tokens))[:, None] * 10_000.0 ** (-np.arange(0, cfg.width, 2) / cfg.width)
            x = x + np.stack([np.sin(angles), np.cos(angles)], -1).reshape(len(tokens), -1)
        for i in range(layers):
            p = jax.tree.map(lambda leaf, i=i: leaf[i], part["blocks"])
            parts = {
                "attention": lambda h, p=p: attend(p["attention"], h, h, part.get("relative"), causal),
                "cross_attention": lambda h, p=p: attend(p["cross_attention"], h, y_SD, None, False),
                "feedforward": lambda h, p=p: feedforward(h, p["feedforward"], cfg.feedforward),
            }
            for name in parts if causal else ("attention", "feedforward"):
                norm = lambda x, p=p, name=name: normalise(x, p[f"{name}_norm"], cfg.norm)
                x = x + parts[name](norm(x)) if cfg.norm_first else norm(x + parts[name](x))
        return normalise(x, part["final_norm"], cfg.norm) if cfg.norm_first else x

    hidden_TD = stack(params, target_T, cfg.layers, stack(params["encoder"], source_S, cfg.encoder_layers, None))
    hidden_TD = hidden_TD / cfg.width**0.5 if cfg.scaled_output else hidden_TD
    return hidden_TD @ params["embedding" if cfg.tied else "unembedding"].T
