"""Published shapes. Each function is one family; counts of parameters equal the published models' exactly."""

from dataclasses import replace

from lmjax.models.config import ModelConfig, Span
from lmjax.models.feedforward import Dense, Gated
from lmjax.models.norms import LayerNorm, RMSNorm
from lmjax.models.positions import Learned, Rotary

GPT2 = {"small": (12, 768, 12), "medium": (24, 1024, 16), "large": (36, 1280, 20), "xl": (48, 1600, 25)}

# GPT-3, table 2.1 (arXiv:2005.14165). XL is printed with 24 heads of 128 and 13B with width 5140; the counts of
# table D.1 hold for 16 heads of 128 and width 5120, so these stand here.
GPT3 = {
    "small": (12, 768, 12), "medium": (24, 1024, 16), "large": (24, 1536, 16), "xl": (24, 2048, 16),
    "2.7b": (32, 2560, 32), "6.7b": (32, 4096, 32), "13b": (40, 5120, 40), "175b": (96, 12288, 96),
}  # fmt: skip

# layers, width, heads, kv_heads, feed-forward width, vocabulary, context, theta
# Llama 2: arXiv:2307.09288; Llama 3: arXiv:2407.21783
LLAMA = {
    "2-7b": (32, 4096, 32, 32, 11008, 32_000, 4096, 10_000.0),
    "2-13b": (40, 5120, 40, 40, 13824, 32_000, 4096, 10_000.0),
    "2-70b": (80, 8192, 64, 8, 28672, 32_000, 4096, 10_000.0),
    "3-8b": (32, 4096, 32, 8, 14336, 128_256, 8192, 500_000.0),
    "3-70b": (80, 8192, 64, 8, 28672, 128_256, 8192, 500_000.0),
}


def gpt2(size: str, **changes) -> ModelConfig:
    """GPT-2 (Radford et al. 2019): learned positions, tanh GELU, biases, tied embeddings. Sizes: see GPT2."""
    layers, width, heads = GPT2[size]
    cfg = ModelConfig(
        layers=layers, width=width, heads=heads, context=1024, vocab=50_257,
        feedforward=Dense(activation="gelu_tanh"), positions=Learned(), norm=LayerNorm(),
    )  # fmt: skip
    return replace(cfg, **changes)


def gpt3(size: str, *, band: int | None = None, **changes) -> ModelConfig:
    """GPT-3's shapes (arXiv:2005.14165, table 2.1). Sizes: see GPT3. band: how many tokens every second layer sees;
    section 2.1 alternates dense and locally banded layers and does not say how wide the bands are. None: all dense."""
    layers, width, heads = GPT3[size]
    pattern = (Span(),) if band is None else (Span(), Span(window=band))
    fields = {"layers": layers, "width": width, "heads": heads, "context": 2048, "pattern": pattern}
    return gpt2("small", **fields | changes)


def llama(size: str, **changes) -> ModelConfig:
    """Llama 2 and 3: rotary positions, RMSNorm, gated SiLU, no biases, untied embeddings. Sizes: see LLAMA."""
    layers, width, heads, kv_heads, hidden, vocab, context, theta = LLAMA[size]
    cfg = ModelConfig(
        layers=layers, width=width, heads=heads, kv_heads=kv_heads, context=context, vocab=vocab,
        feedforward=Gated(width=hidden, activation="silu"), positions=Rotary(theta=theta),
        norm=RMSNorm(), bias=False, tied=False,
    )  # fmt: skip
    return replace(cfg, **changes)


def nanogpt(**changes) -> ModelConfig:
    """nanoGPT's model (github.com/karpathy/nanoGPT, model.py) with bias=False: GPT-2 with the exact GELU, no biases."""
    cfg = ModelConfig(
        layers=12, width=768, heads=12, context=1024,
        feedforward=Dense(activation="gelu", bias=False), positions=Learned(), norm=LayerNorm(bias=False), bias=False,
    )  # fmt: skip
    return replace(cfg, **changes)
