"""Llama 1 to 3 (arXiv:2302.13971, 2307.09288, 2407.21783) and what was built on it: Mistral (arXiv:2310.06825), Mixtral
(arXiv:2401.04088), Qwen 2 (arXiv:2407.10671), Qwen 3 (arXiv:2505.09388)."""

from dataclasses import replace
from functools import partial

from lmjax.interop.config_json import THEIR_ACTIVATIONS, ConfigJson, rotary, rotary_json
from lmjax.interop.family import (
    Family,
    LabelHead,
    layer_types,
    norm_entries,
    only_window,
    pattern_of,
    their_layer_types,
)
from lmjax.interop.mapping import Entry
from lmjax.models.config import ModelConfig, Span
from lmjax.models.feedforward import Dense, Experts, Gated
from lmjax.models.norms import RMSNorm
from lmjax.models.positions import Rotary


def _read(
    c: ConfigJson, *, context: int, head_dim: int | None = None, theta: float = 10_000.0, **changes
) -> ModelConfig:
    """What all have; context, head_dim, theta: the family's own where the file says nothing."""
    width, heads = c.whole("hidden_size"), c.whole("num_attention_heads")
    context = c.whole("max_position_embeddings", context)
    bias = c.flag("attention_bias", False)
    fields = {
        "layers": c.count("num_hidden_layers"), "width": width, "heads": heads, "context": context,
        "kv_heads": c.whole("num_key_value_heads", heads), "head_dim": c.whole("head_dim", head_dim),
        "vocab": c.whole("vocab_size"), "bias": bias, "norm": RMSNorm(epsilon=c.number("rms_norm_eps", 1e-6)),
        "positions": rotary(ConfigJson(c.where, {**c.values, "max_position_embeddings": context}), theta=theta),
        "tied": c.flag("tie_word_embeddings", False), "init_std": c.number("initializer_range", 0.02),
    }  # fmt: skip
    if "feedforward" not in changes:
        fields["feedforward"] = Gated(
            width=c.whole("intermediate_size"),
            activation=c.activation("hidden_act", "silu"),
            bias=c.flag("mlp_bias", False),
        )
    return ModelConfig(**fields | changes)


def _window(c: ConfigJson, default: int | None) -> tuple[Span, ...]:
    """One window for all layers; null, which is not the same as nothing said, is none."""
    if "sliding_window" in c.values and c.values["sliding_window"] is None:
        return (Span(),)
    return (Span(window=c.whole("sliding_window", default)),)


def _read_mistral(c: ConfigJson) -> ModelConfig:
    return _read(c, context=4096 * 32, pattern=_window(c, 4096))


def _read_mixtral(c: ConfigJson) -> ModelConfig:
    experts = Experts(
        count=c.count("num_local_experts", c.count("num_experts", 8)), chosen=c.count("num_experts_per_tok", 2),
        width=c.whole("intermediate_size"), activation=c.activation("hidden_act", "silu"),
    )  # fmt: skip
    changes = {"norm": RMSNorm(epsilon=c.number("rms_norm_eps", 1e-5)), "feedforward": experts}
    return _read(c, context=4096 * 32, theta=1e6, pattern=_window(c, None), **changes)


def _read_qwen(c: ConfigJson, **changes) -> ModelConfig:
    """Windows slide only where `use_sliding_window` says so, from layer `max_window_layers` on."""
    spans = [Span()]
    if c.flag("use_sliding_window", False):
        (window,) = _window(c, 4096)
        first, layers = c.count("max_window_layers", 28, least=0), c.count("num_hidden_layers")
        spans = [window if slides else Span() for slides in layer_types(c, layers, lambda i: i >= first)]
    return _read(c, context=32_768, pattern=pattern_of(spans), **changes)


def _read_qwen2(c: ConfigJson) -> ModelConfig:
    return _read_qwen(c, bias=True, out_bias=False)


def _read_qwen3(c: ConfigJson) -> ModelConfig:
    return _read_qwen(c, head_dim=128, qk_norm=True)


def _write(cfg: ModelConfig, *names: str) -> dict:
    """The fields that all have, and those of `names`."""
    turned = cfg.positions if isinstance(cfg.positions, Rotary) else Rotary()
    experts = cfg.feedforward if isinstance(cfg.feedforward, Experts) else Experts()
    fields = {
        "num_hidden_layers": cfg.layers, "hidden_size": cfg.width, "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.n_kv_heads, "head_dim": cfg.head_width, "max_position_embeddings": cfg.context,
        "vocab_size": cfg.vocab, "rms_norm_eps": cfg.norm.epsilon, "intermediate_size": cfg.hidden,
        "hidden_act": THEIR_ACTIVATIONS[cfg.feedforward.activation], "tie_word_embeddings": cfg.tied,
        "initializer_range": cfg.init_std, "attention_dropout": cfg.dropout, **rotary_json(turned),
    }  # fmt: skip
    special = {
        "attention_bias": cfg.bias, "mlp_bias": getattr(cfg.feedforward, "bias", False),
        "sliding_window": only_window(cfg), "use_sliding_window": only_window(cfg) is not None,
        "layer_types": their_layer_types(cfg), "max_window_layers": cfg.layers,
        "num_local_experts": experts.count, "num_experts_per_tok": experts.chosen,
    }  # fmt: skip
    return fields | {name: special[name] for name in names}


def _squared_as_gated(cfg: ModelConfig) -> ModelConfig:
    """relu(x W)^2 = relu(x W) * (x W): a gated layer whose two matrices are one."""
    ff = cfg.feedforward
    if isinstance(ff, Dense) and ff.activation == "relu_squared" and not ff.bias:
        return replace(cfg, feedforward=Gated(width=cfg.hidden, activation="relu", bias=False))
    return cfg


def attention_entries(cfg: ModelConfig) -> list[Entry]:
    """Attention and the two norms around a block's parts, as all have them."""
    block, layer = "blocks/", "layers.{layer}."
    entries = [
        *norm_entries("final_norm", "norm", cfg),
        *norm_entries(f"{block}attention_norm", f"{layer}input_layernorm", cfg),
    ]
    for name, heads in (("q", "N"), ("k", "K"), ("v", "K")):
        ours, theirs = f"{block}attention/{name}/", f"{layer}self_attn.{name}_proj."
        entries.append(Entry(f"{ours}kernel", f"{theirs}weight", f"({heads} H) D -> D {heads} H"))
        if cfg.bias:
            entries.append(Entry(f"{ours}bias", f"{theirs}bias", f"({heads} H) -> {heads} H"))
    entries.append(Entry(f"{block}attention/out/kernel", f"{layer}self_attn.o_proj.weight", "D (N H) -> N H D"))
    if cfg.bias if cfg.out_bias is None else cfg.out_bias:
        entries.append(Entry(f"{block}attention/out/bias", f"{layer}self_attn.o_proj.bias", "D -> D"))
    if cfg.qk_norm:
        for name in "qk":
            entries += norm_entries(f"{block}attention/{name}_norm", f"{layer}self_attn.{name}_norm", cfg, "H")
    return entries


def gated_entries(cfg: ModelConfig) -> list[Entry]:
    """gate, up and down."""
    ours, theirs = "blocks/feedforward/", "layers.{layer}.mlp."
    entries = []
    for name, pattern, bias in (("gate", "F D -> D F", "F"), ("up", "F D -> D F", "F"), ("down", "D F -> F D", "D")):
        entries.append(Entry(f"{ours}{name}/kernel", f"{theirs}{name}_proj.weight", pattern))
        if cfg.feedforward.bias:
            entries.append(Entry(f"{ours}{name}/bias", f"{theirs}{name}_proj.bias", f"{bias} -> {bias}"))
    return entries


def _entries(cfg: ModelConfig) -> list[Entry]:
    return [
        *attention_entries(cfg), *gated_entries(cfg),
        *norm_entries("blocks/feedforward_norm", "layers.{layer}.post_attention_layernorm", cfg),
    ]  # fmt: skip


def _entries_mixtral(cfg: ModelConfig) -> list[Entry]:
    ours, theirs = "blocks/feedforward/", "layers.{layer}.block_sparse_moe."
    return [
        *attention_entries(cfg),
        *norm_entries("blocks/feedforward_norm", "layers.{layer}.post_attention_layernorm", cfg),
        Entry(f"{ours}router", f"{theirs}gate.weight", "E D -> D E"),
        Entry(f"{ours}gate", f"{theirs}experts.{{expert}}.w1.weight", "F D -> D F"),
        Entry(f"{ours}down", f"{theirs}experts.{{expert}}.w2.weight", "D F -> F D"),
        Entry(f"{ours}up", f"{theirs}experts.{{expert}}.w3.weight", "F D -> D F"),
    ]


def _family(model_type: str, architecture: str, read, entries, *fields: str) -> Family:
    return Family(
        model_type=model_type, architecture=architecture, prefix="model.", embedding="embed_tokens.weight", read=read,
        write=lambda cfg: _write(cfg, *fields), entries=entries, widened=_squared_as_gated,
        stands_in={"blocks/feedforward/gate/kernel": "blocks/feedforward/up/kernel"},
        labels=LabelHead(architecture.replace("CausalLM", "SequenceClassification")),
    )  # fmt: skip


WINDOWS = ("sliding_window", "use_sliding_window", "layer_types", "max_window_layers")
LLAMA = _family("llama", "LlamaForCausalLM", partial(_read, context=2048), _entries, "attention_bias", "mlp_bias")
MISTRAL = _family("mistral", "MistralForCausalLM", _read_mistral, _entries, "sliding_window")
MIXTRAL = _family(
    "mixtral", "MixtralForCausalLM", _read_mixtral, _entries_mixtral,
    "sliding_window", "num_local_experts", "num_experts_per_tok",
)  # fmt: skip
QWEN2 = _family("qwen2", "Qwen2ForCausalLM", _read_qwen2, _entries, *WINDOWS)
QWEN3 = _family("qwen3", "Qwen3ForCausalLM", _read_qwen3, _entries, "attention_bias", *WINDOWS)
