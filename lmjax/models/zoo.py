"""Published shapes. Each function is one family; counts of parameters equal the published models' exactly."""

from dataclasses import replace

from lmjax.models.config import ModelConfig, Span
from lmjax.models.feedforward import Dense, Gated
from lmjax.models.norms import LayerNorm, RMSNorm
from lmjax.models.positions import Learned, Relative, Rotary, Sinusoidal

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

# layers, width, heads: arXiv:1810.04805, section 3; the small ones arXiv:1908.08962, table 1
BERT = {
    "tiny": (2, 128, 2), "mini": (4, 256, 4), "small": (4, 512, 8), "medium": (8, 512, 8), "base": (12, 768, 12),
    "large": (24, 1024, 16),
}  # fmt: skip

# width, feed-forward width, heads, dropout: arXiv:1706.03762, table 3
TRANSFORMER_2017 = {"base": (512, 2048, 8, 0.1), "big": (1024, 4096, 16, 0.3)}

# layers of each stack, width, heads, head width, feed-forward width: arXiv:1910.10683, section 3.7; v1.1:
# github.com/google-research/text-to-text-transfer-transformer, released_checkpoints.md
T5 = {
    "small": (6, 512, 8, 64, 2048), "base": (12, 768, 12, 64, 3072), "large": (24, 1024, 16, 64, 4096),
    "3b": (24, 1024, 32, 128, 16384), "11b": (24, 1024, 128, 128, 65536),
}  # fmt: skip
T5_V1_1 = {
    "small": (8, 512, 6, 64, 1024), "base": (12, 768, 12, 64, 2048), "large": (24, 1024, 16, 64, 2816),
    "xl": (24, 2048, 32, 64, 5120), "xxl": (24, 4096, 64, 64, 10240),
}  # fmt: skip


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


def bert(size: str, **changes) -> ModelConfig:
    """BERT (arXiv:1810.04805), uncased: norms behind, learned positions, two types of tokens, GELU, both heads. Sizes:
    see BERT."""
    layers, width, heads = BERT[size]
    cfg = ModelConfig(
        layers=layers, width=width, heads=heads, context=512, vocab=30_522, feedforward=Dense(activation="gelu"),
        positions=Learned(), norm=LayerNorm(epsilon=1e-12), causal=False, norm_first=False, embedding_norm=True,
        token_types=2, masked_head="gelu", pooler=True, dropout=0.1,
    )  # fmt: skip
    return replace(cfg, **changes)


def roberta(size: str, **changes) -> ModelConfig:
    """RoBERTa (arXiv:1907.11692): BERT of one type of tokens, another vocabulary and no second task. Sizes: "base" and
    "large" of BERT."""
    fields = {
        "vocab": 50_265, "positions": Learned(offset=2), "norm": LayerNorm(epsilon=1e-5), "token_types": 1,
        "pooler": False,
    }  # fmt: skip
    return bert(size, **fields | changes)


def transformer_2017(size: str, **changes) -> ModelConfig:
    """The Transformer (arXiv:1706.03762): an encoder and a decoder of 6 layers, norms behind, sinusoidal positions, one
    embedding for source, target and output, ReLU, biases in the feed-forward layers alone. Sizes: see TRANSFORMER_2017.
    Matrices begin as Glorot has it for square ones."""
    width, hidden, heads, dropout = TRANSFORMER_2017[size]
    cfg = ModelConfig(
        layers=6, encoder_layers=6, width=width, heads=heads, context=512, vocab=37_000, norm_first=False,
        feedforward=Dense(width=hidden, activation="relu"), positions=Sinusoidal(), norm=LayerNorm(epsilon=1e-6),
        bias=False, scaled_embedding=True, dropout=dropout, init_std=width**-0.5,
    )  # fmt: skip
    return replace(cfg, **changes)


def t5(size: str, **changes) -> ModelConfig:
    """T5 v1.0 (arXiv:1910.10683): relative positions, scores that are not scaled, RMSNorm, ReLU, no biases, tied with
    the output scaled. Sizes: see T5."""
    layers, width, heads, head_dim, hidden = T5[size]
    cfg = ModelConfig(
        layers=layers, encoder_layers=layers, width=width, heads=heads, head_dim=head_dim, context=512, vocab=32_128,
        feedforward=Dense(width=hidden, activation="relu", bias=False), positions=Relative(), score_scale=1.0,
        norm=RMSNorm(epsilon=1e-6), bias=False, scaled_output=True, dropout=0.1,
    )  # fmt: skip
    return replace(cfg, **changes)


def t5_v1_1(size: str, **changes) -> ModelConfig:
    """T5 v1.1: T5 with gated GELU (arXiv:2002.05202) and an unembedding of its own. Sizes: see T5_V1_1."""
    layers, width, heads, head_dim, hidden = T5_V1_1[size]
    fields = {
        "layers": layers, "encoder_layers": layers, "width": width, "heads": heads, "head_dim": head_dim,
        "feedforward": Gated(width=hidden, activation="gelu_tanh"), "tied": False, "scaled_output": False,
    }  # fmt: skip
    return t5("small", **fields | changes)
