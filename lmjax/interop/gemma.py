"""Gemma 2 (arXiv:2408.00118) and the language model of Gemma 3 (arXiv:2503.19786)."""

from lmjax.errors import UserError
from lmjax.interop.config_json import THEIR_ACTIVATIONS, ConfigJson, rotary, rotary_json
from lmjax.interop.family import (
    BUFFERS,
    Family,
    LabelHead,
    layer_types,
    norm_entries,
    only_window,
    pattern_of,
    their_layer_types,
)
from lmjax.interop.llama import attention_entries, gated_entries
from lmjax.interop.mapping import Entry
from lmjax.models.config import ModelConfig, Span
from lmjax.models.feedforward import Gated
from lmjax.models.norms import RMSNorm
from lmjax.models.positions import Rotary

# the parts of Gemma 3 that look at pictures
VISION = r"|^(vision_tower|multi_modal_projector)\."


def _cap(c: ConfigJson, name: str, default: float | None) -> float | None:
    """null, which is not the same as nothing said, is none."""
    return None if name in c.values and c.values[name] is None else c.number(name, default)


def _read(c: ConfigJson, **changes) -> ModelConfig:
    c.only("use_bidirectional_attention", False)
    fields = {
        "layers": c.count("num_hidden_layers", 26), "width": c.whole("hidden_size", 2304),
        "heads": c.whole("num_attention_heads", 8), "kv_heads": c.whole("num_key_value_heads", 4),
        "head_dim": c.whole("head_dim", 256), "bias": c.flag("attention_bias", False),
        "norm": RMSNorm(epsilon=c.number("rms_norm_eps", 1e-6), offset=True),
        "feedforward": Gated(
            width=c.whole("intermediate_size", 9216), activation=c.activation("hidden_activation", "gelu_pytorch_tanh")
        ),
        "score_scale": c.positive("query_pre_attn_scalar", 256.0) ** -0.5,
        "tied": c.flag("tie_word_embeddings", True), "init_std": c.number("initializer_range", 0.02),
        "post_norms": True, "scaled_embedding": True,
    }  # fmt: skip
    return ModelConfig(**fields | changes)


def _read_gemma2(c: ConfigJson) -> ModelConfig:
    layers, window = c.count("num_hidden_layers"), c.whole("sliding_window", 4096)
    slides = layer_types(c, layers, lambda i: (i + 1) % 2 != 0)
    context = c.whole("max_position_embeddings", 8192)
    return _read(
        c, context=context, vocab=c.whole("vocab_size", 256_000),
        positions=rotary(ConfigJson(c.where, {**c.values, "max_position_embeddings": context})),
        pattern=pattern_of([Span(window=window) if slide else Span() for slide in slides]),
        score_cap=_cap(c, "attn_logit_softcapping", 50.0), logit_cap=_cap(c, "final_logit_softcapping", 30.0),
    )  # fmt: skip


def _read_gemma3(c: ConfigJson) -> ModelConfig:
    tied = c.flag("tie_word_embeddings", True)
    if c.has("text_config"):
        text = c.part("text_config")
        c = ConfigJson(text.where, {"tie_word_embeddings": tied} | text.values)
    if c.has("attn_logit_softcapping"):
        raise UserError(f"{c.where}: attn_logit_softcapping is set; Gemma 3 has none, and transformers ignores it")
    layers = c.count("num_hidden_layers", 26)
    context = c.whole("max_position_embeddings", 131_072)
    c = ConfigJson(c.where, {**c.values, "max_position_embeddings": context})
    every = c.count("sliding_window_pattern", 6)
    slides = layer_types(c, layers, lambda i: (i + 1) % every != 0)
    # the layers that see everything turn slower, and only they are stretched
    local = {"rope_theta": c.number("rope_local_base_freq", 10_000.0), "rope_scaling": None}
    near = rotary(ConfigJson(c.where, c.values | local), kind="sliding_attention")
    window = Span(window=c.whole("sliding_window", 4096), rotary=near)
    return _read(
        c, context=context, vocab=c.whole("vocab_size", 262_208), qk_norm=True,
        positions=rotary(c, theta=1e6, kind="full_attention"),
        pattern=pattern_of([window if slide else Span() for slide in slides]),
        logit_cap=_cap(c, "final_logit_softcapping", None),
    )  # fmt: skip


def _write(cfg: ModelConfig) -> dict:
    turned = cfg.positions if isinstance(cfg.positions, Rotary) else Rotary()
    # a whole number, as transformers takes no other
    scalar = cfg.head_width if cfg.score_scale is None else max(1, round(cfg.score_scale**-2))
    return {
        "num_hidden_layers": cfg.layers, "hidden_size": cfg.width, "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.n_kv_heads, "head_dim": cfg.head_width, "max_position_embeddings": cfg.context,
        "vocab_size": cfg.vocab, "attention_bias": cfg.bias, "rms_norm_eps": cfg.norm.epsilon,
        "intermediate_size": cfg.hidden, "hidden_activation": THEIR_ACTIVATIONS[cfg.feedforward.activation],
        "query_pre_attn_scalar": scalar, "tie_word_embeddings": cfg.tied, "initializer_range": cfg.init_std,
        "attention_dropout": cfg.dropout, "sliding_window": only_window(cfg) or cfg.context,
        "layer_types": their_layer_types(cfg), "final_logit_softcapping": cfg.logit_cap, **rotary_json(turned),
    }  # fmt: skip


def _write_gemma2(cfg: ModelConfig) -> dict:
    return _write(cfg) | {"attn_logit_softcapping": cfg.score_cap}


def _write_gemma3(cfg: ModelConfig) -> dict:
    near = next((span.rotary for span in cfg.pattern if span.rotary is not None), None)
    theta = near.theta if near else getattr(cfg.positions, "theta", 10_000.0)
    return _write(cfg) | {"rope_local_base_freq": theta, "attn_logit_softcapping": None}


def _entries(cfg: ModelConfig) -> list[Entry]:
    layer = "layers.{layer}."
    return [
        *attention_entries(cfg), *gated_entries(cfg),
        *norm_entries("blocks/attention_post_norm", f"{layer}post_attention_layernorm", cfg),
        *norm_entries("blocks/feedforward_norm", f"{layer}pre_feedforward_layernorm", cfg),
        *norm_entries("blocks/feedforward_post_norm", f"{layer}post_feedforward_layernorm", cfg),
    ]  # fmt: skip


GEMMA2 = Family(
    model_type="gemma2", architecture="Gemma2ForCausalLM", prefix="model.", embedding="embed_tokens.weight",
    read=_read_gemma2, write=_write_gemma2, entries=_entries,
    labels=LabelHead("Gemma2ForSequenceClassification"),
)  # fmt: skip
GEMMA3 = Family(
    model_type="gemma3_text", architecture="Gemma3ForCausalLM", prefix="model.", prefixes=("language_model.",),
    embedding="embed_tokens.weight", read=_read_gemma3, write=_write_gemma3, entries=_entries, ignored=BUFFERS + VISION,
    labels=LabelHead("Gemma3TextForSequenceClassification"),
)  # fmt: skip
