"""Small random models of every family, made and saved by transformers with settings that are nowhere the default."""

from pathlib import Path

import torch
import transformers

T = 512
WIDE = {"vocab_size": 97, "max_position_embeddings": 600, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
LLAMA = {
    **WIDE, "num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
    "intermediate_size": 44, "rms_norm_eps": 3e-3,
}  # fmt: skip
QWEN2 = {name: value for name, value in LLAMA.items() if name != "head_dim"}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 6.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 700.0, "factor": 5.0, "original_max_position_embeddings": 120, "beta_fast": 2.0,
    "beta_slow": 0.2,
}  # fmt: skip

# name: (class, settings, {setting: what it would be if it were ignored})
MODELS = {
    "gpt2": (
        "GPT2",
        {
            "vocab_size": 97, "n_positions": 600, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 40,
            "activation_function": "gelu_new", "layer_norm_epsilon": 3e-3, "scale_attn_by_inverse_layer_idx": True,
            "bos_token_id": 1, "eos_token_id": 2,
        },
        {"scale_attn_by_inverse_layer_idx": False, "layer_norm_epsilon": 1e-5, "activation_function": "relu", "n_head": 2},
    ),
    "gpt2_untied": (
        "GPT2",
        {
            "vocab_size": 97, "n_positions": 600, "n_embd": 32, "n_layer": 2, "n_head": 4, "activation_function": "relu",
            "tie_word_embeddings": False, "scale_attn_weights": False, "bos_token_id": 1, "eos_token_id": 2,
        },
        {"scale_attn_weights": True, "activation_function": "gelu_new"},
    ),
    "gpt_neox": (
        "GPTNeoX",
        {
            **WIDE, "num_hidden_layers": 3, "hidden_size": 40, "num_attention_heads": 4, "intermediate_size": 44,
            "layer_norm_eps": 3e-3, "hidden_act": "gelu",
            "rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.6},
        },
        {
            "layer_norm_eps": 1e-5, "hidden_act": "relu", "use_parallel_residual": False, "num_attention_heads": 2,
            "rope_parameters.rope_theta": 10_000.0, "rope_parameters.partial_rotary_factor": 0.25,
        },
    ),
    "gpt_neox_sequential": (
        "GPTNeoX",
        {
            **WIDE, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 44,
            "use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True,
        },
        {"use_parallel_residual": True},
    ),
    "llama": (
        "Llama",
        {**LLAMA, "rope_parameters": LLAMA3, "hidden_act": "gelu"},
        {
            "rms_norm_eps": 1e-6, "hidden_act": "silu", "rope_parameters.rope_theta": 10_000.0,
            "rope_parameters.factor": 1.0, "rope_parameters.rope_type": "default",
            "rope_parameters.low_freq_factor": 0.2, "rope_parameters.high_freq_factor": 9.0,
            "rope_parameters.original_max_position_embeddings": 600,
        },
    ),
    "llama_linear": (
        "Llama",
        {
            **LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 400.0},
        },
        {"rope_parameters.factor": 1.0, "rope_parameters.rope_theta": 10_000.0, "rms_norm_eps": 1e-6},
    ),
    "mistral": (
        "Mistral",
        {**LLAMA, "sliding_window": 50, "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}},
        {"sliding_window": None, "rms_norm_eps": 1e-6, "hidden_act": "gelu", "rope_parameters.rope_theta": 10_000.0},
    ),
    "mixtral": (
        "Mixtral",
        {
            **LLAMA, "num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 70,
            "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
        },
        {
            "num_experts_per_tok": 2, "sliding_window": None, "rms_norm_eps": 1e-5, "hidden_act": "gelu",
            "rope_parameters.rope_theta": 1e6,
        },
    ),
    "qwen2": (
        "Qwen2",
        {
            **QWEN2, "rope_parameters": YARN, "use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
        {
            "use_sliding_window": False, "sliding_window": 90, "layer_types": ["sliding_attention"] * 3,
            "max_window_layers": 2, "rms_norm_eps": 1e-6, "hidden_act": "gelu", "rope_parameters.rope_theta": 10_000.0,
            "rope_parameters.factor": 1.0, "rope_parameters.beta_fast": 32.0, "rope_parameters.beta_slow": 1.0,
            "rope_parameters.original_max_position_embeddings": 600, "rope_parameters.attention_factor": 1.0,
        },
    ),
    "qwen3": (
        "Qwen3",
        {**LLAMA, "attention_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 900.0}},
        {"rope_parameters.rope_theta": 10_000.0, "rms_norm_eps": 1e-6, "hidden_act": "gelu"},
    ),
    "gemma2": (
        "Gemma2",
        {
            **LLAMA, "query_pre_attn_scalar": 5, "sliding_window": 30, "attn_logit_softcapping": 7.0,
            "final_logit_softcapping": 14.0, "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
        },
        {
            "rope_parameters.rope_theta": 10_000.0, "query_pre_attn_scalar": 12, "sliding_window": 4096, "attn_logit_softcapping": None,
            "final_logit_softcapping": None, "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "hidden_activation": "silu", "rms_norm_eps": 1e-6,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {
            **LLAMA, "query_pre_attn_scalar": 5, "sliding_window": 30, "final_logit_softcapping": 14.0,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 60.0},
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 3_000.0},
            },
        },
        {
            "query_pre_attn_scalar": 12, "sliding_window": 4096, "final_logit_softcapping": None,
            "hidden_activation": "silu", "rms_norm_eps": 1e-6,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters.sliding_attention.rope_theta": 10_000.0,
            "rope_parameters.full_attention.rope_theta": 1e6, "rope_parameters.full_attention.factor": 1.0,
        },
    ),
}  # fmt: skip


def make(name: str, directory: Path, *, changes: dict | None = None) -> transformers.PreTrainedModel:
    """The model of that name in float32, its attention peaked and its logits above 10; saved in the directory."""
    kind, settings, _ = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**settings | (changes or {}), attn_implementation="eager")
    dropouts = [field for field in vars(config) if field.endswith(("pdrop", "dropout"))]
    for field in dropouts:
        setattr(config, field, 0.0)
    torch.manual_seed(sum(map(ord, name)))
    model = getattr(transformers, f"{kind.removesuffix('Text')}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}")(
        config
    )
    with torch.no_grad():
        for path, weight in model.named_parameters():
            noise = torch.randn(weight.shape)
            if weight.dim() >= 2:
                wide = "embed" in path or "wte" in path or "lm_head" in path
                weight.copy_(noise * (0.8 if wide else 1.6 / weight.shape[-1] ** 0.5))
            elif "norm" in path or "ln_" in path:
                # Gemma's scales are kept as their difference from 1
                weight.add_(0.3 * noise)
            else:
                weight.copy_(0.3 * noise)
    model.eval().save_pretrained(directory)
    return model


T5 = {
    "vocab_size": 97, "d_model": 32, "d_kv": 12, "d_ff": 44, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 3,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 21, "layer_norm_epsilon": 3e-3,
    "dropout_rate": 0.0, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
T5_V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
# name: (settings, {setting: what it would be if it were ignored})
T5_MODELS = {
    "t5": (
        {},
        {
            "feed_forward_proj": "gelu", "relative_attention_num_buckets": 12, "relative_attention_max_distance": 128,
            "layer_norm_epsilon": 1e-6, "scale_decoder_outputs": False,
        },
    ),
    "t5_v1_1": (T5_V1_1, {"feed_forward_proj": "gated-relu", "scale_decoder_outputs": True}),
}  # fmt: skip


def make_t5(name: str, directory: Path, seed: int = 5, **changes):
    """A model with its attention peaked, saved with its own unembedding where it has one."""
    config = transformers.T5Config(**T5 | T5_MODELS[name][0] | changes, attn_implementation="eager")
    torch.manual_seed(seed)
    model = transformers.T5ForConditionalGeneration(config)
    if name == "t5_v1_1":
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    with torch.no_grad():
        for path, weight in model.named_parameters():
            noise = torch.randn(weight.shape)
            if weight.dim() < 2:
                weight.add_(0.3 * noise)
            elif "relative" in path:
                weight.copy_(noise)
            else:
                # scores are not divided by the root of the head's width
                wide, narrow = (
                    any(part in path for part in ("shared", "lm_head")),
                    path.endswith(("q.weight", "k.weight")),
                )
                weight.copy_(noise * (0.8 if wide else (0.7 if narrow else 1.6) / weight.shape[-1] ** 0.5))
    model.eval().save_pretrained(directory)
    return model
