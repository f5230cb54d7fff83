"""GPT-2 (Radford et al. 2019) and GPT-NeoX (arXiv:2204.06745; Pythia, arXiv:2304.01373)."""

from dataclasses import replace

from lmjax.interop.config_json import THEIR_ACTIVATIONS, ConfigJson, rotary, rotary_json
from lmjax.interop.family import Family, LabelHead, norm_entries
from lmjax.interop.mapping import Entry
from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Dense
from lmjax.models.norms import LayerNorm
from lmjax.models.positions import Learned, Rotary


def _read_gpt2(c: ConfigJson) -> ModelConfig:
    c.only("add_cross_attention", False)
    width, heads = c.whole("n_embd"), c.whole("n_head")
    activation = c.activation("activation_function", "gelu_new")
    return ModelConfig(
        layers=c.count("n_layer"), width=width, heads=heads, context=c.whole("n_positions", c.whole("n_ctx", 1024)),
        vocab=c.whole("vocab_size"), positions=Learned(), norm=LayerNorm(epsilon=c.number("layer_norm_epsilon", 1e-5)),
        feedforward=Dense(width=c.whole("n_inner", 4 * width), activation=activation),
        score_scale=None if c.flag("scale_attn_weights", True) else 1.0,
        scale_by_layer=c.flag("scale_attn_by_inverse_layer_idx", False),
        tied=c.flag("tie_word_embeddings", True), init_std=c.number("initializer_range", 0.02),
    )  # fmt: skip


def _write_gpt2(cfg: ModelConfig) -> dict:
    return {
        "n_layer": cfg.layers, "n_embd": cfg.width, "n_head": cfg.heads,
        "n_positions": cfg.context, "n_ctx": cfg.context,
        "vocab_size": cfg.vocab, "layer_norm_epsilon": cfg.norm.epsilon, "n_inner": cfg.hidden,
        "activation_function": {"gelu_tanh": "gelu_new"}.get(
            cfg.feedforward.activation, THEIR_ACTIVATIONS[cfg.feedforward.activation]
        ),
        "scale_attn_weights": cfg.score_scale != 1.0, "scale_attn_by_inverse_layer_idx": cfg.scale_by_layer,
        "tie_word_embeddings": cfg.tied, "initializer_range": cfg.init_std,
        "resid_pdrop": cfg.dropout, "embd_pdrop": cfg.dropout, "attn_pdrop": cfg.dropout,
    }  # fmt: skip


def _with_biases(cfg: ModelConfig) -> ModelConfig:
    """A model without biases is one whose biases are 0."""
    norm = replace(cfg.norm, bias=True) if isinstance(cfg.norm, LayerNorm) else cfg.norm
    feedforward = replace(cfg.feedforward, bias=True) if isinstance(cfg.feedforward, Dense) else cfg.feedforward
    return replace(cfg, bias=True, out_bias=None, norm=norm, feedforward=feedforward)


def _entries_gpt2(cfg: ModelConfig) -> list[Entry]:
    block, layer = "blocks/", "h.{layer}."
    entries = [Entry("positions", "wpe.weight", "T D -> T D"), *norm_entries("final_norm", "ln_f", cfg)]
    for part, name in enumerate("qkv"):
        ours, theirs = f"{block}attention/{name}/", f"{layer}attn.c_attn."
        entries += [
            Entry(f"{ours}kernel", f"{theirs}weight", "D (3 N H) -> D N H", part),
            Entry(f"{ours}bias", f"{theirs}bias", "(3 N H) -> N H", part),
        ]
    return [
        *entries,
        Entry(f"{block}attention/out/kernel", f"{layer}attn.c_proj.weight", "(N H) D -> N H D"),
        Entry(f"{block}attention/out/bias", f"{layer}attn.c_proj.bias", "D -> D"),
        Entry(f"{block}feedforward/up/kernel", f"{layer}mlp.c_fc.weight", "D F -> D F"),
        Entry(f"{block}feedforward/up/bias", f"{layer}mlp.c_fc.bias", "F -> F"),
        Entry(f"{block}feedforward/down/kernel", f"{layer}mlp.c_proj.weight", "F D -> F D"),
        Entry(f"{block}feedforward/down/bias", f"{layer}mlp.c_proj.bias", "D -> D"),
        *norm_entries(f"{block}attention_norm", f"{layer}ln_1", cfg),
        *norm_entries(f"{block}feedforward_norm", f"{layer}ln_2", cfg),
    ]


GPT2 = Family(
    model_type="gpt2", architecture="GPT2LMHeadModel", prefix="transformer.", embedding="wte.weight",
    read=_read_gpt2, write=_write_gpt2, entries=_entries_gpt2, widened=_with_biases,
    labels=LabelHead("GPT2ForSequenceClassification"),
)  # fmt: skip


def _read_neox(c: ConfigJson) -> ModelConfig:
    bias = c.flag("attention_bias", True)
    return ModelConfig(
        layers=c.count("num_hidden_layers"), width=c.whole("hidden_size"), heads=c.whole("num_attention_heads"),
        context=c.whole("max_position_embeddings", 2048), vocab=c.whole("vocab_size"), bias=bias,
        norm=LayerNorm(epsilon=c.number("layer_norm_eps", 1e-5)), positions=rotary(c, fraction=0.25),
        feedforward=Dense(width=c.whole("intermediate_size"), activation=c.activation("hidden_act", "gelu")),
        parallel=c.flag("use_parallel_residual", True), tied=c.flag("tie_word_embeddings", False),
        init_std=c.number("initializer_range", 0.02),
    )  # fmt: skip


def _write_neox(cfg: ModelConfig) -> dict:
    turned = cfg.positions if isinstance(cfg.positions, Rotary) else Rotary()
    rope = rotary_json(turned)
    return {
        "num_hidden_layers": cfg.layers, "hidden_size": cfg.width, "num_attention_heads": cfg.heads,
        "max_position_embeddings": cfg.context, "vocab_size": cfg.vocab, "attention_bias": cfg.bias,
        "layer_norm_eps": cfg.norm.epsilon, "intermediate_size": cfg.hidden,
        "hidden_act": THEIR_ACTIVATIONS[cfg.feedforward.activation], "use_parallel_residual": cfg.parallel,
        "tie_word_embeddings": cfg.tied, "initializer_range": cfg.init_std, "rotary_pct": turned.fraction,
        "rotary_emb_base": rope["rope_theta"], "rope_scaling": rope["rope_scaling"],
        "hidden_dropout": cfg.dropout, "attention_dropout": cfg.dropout,
    }  # fmt: skip


def _biases_but_attention(cfg: ModelConfig) -> ModelConfig:
    wide = _with_biases(cfg)
    return replace(wide, bias=cfg.bias, out_bias=cfg.out_bias)


def _entries_neox(cfg: ModelConfig) -> list[Entry]:
    block, layer = "blocks/", "layers.{layer}."
    entries = [*norm_entries("final_norm", "final_layer_norm", cfg)]
    for part, name in enumerate("qkv"):
        ours, theirs = f"{block}attention/{name}/", f"{layer}attention.query_key_value."
        entries.append(Entry(f"{ours}kernel", f"{theirs}weight", "(N 3 H) D -> D N H", part))
        if cfg.bias:
            entries.append(Entry(f"{ours}bias", f"{theirs}bias", "(N 3 H) -> N H", part))
    if cfg.bias:
        entries.append(Entry(f"{block}attention/out/bias", f"{layer}attention.dense.bias", "D -> D"))
    return [
        *entries,
        Entry(f"{block}attention/out/kernel", f"{layer}attention.dense.weight", "D (N H) -> N H D"),
        Entry(f"{block}feedforward/up/kernel", f"{layer}mlp.dense_h_to_4h.weight", "F D -> D F"),
        Entry(f"{block}feedforward/up/bias", f"{layer}mlp.dense_h_to_4h.bias", "F -> F"),
        Entry(f"{block}feedforward/down/kernel", f"{layer}mlp.dense_4h_to_h.weight", "D F -> F D"),
        Entry(f"{block}feedforward/down/bias", f"{layer}mlp.dense_4h_to_h.bias", "D -> D"),
        *norm_entries(f"{block}attention_norm", f"{layer}input_layernorm", cfg),
        *norm_entries(f"{block}feedforward_norm", f"{layer}post_attention_layernorm", cfg),
    ]


GPT_NEOX = Family(
    model_type="gpt_neox", architecture="GPTNeoXForCausalLM", prefix="gpt_neox.", embedding="embed_in.weight",
    head="embed_out.weight", read=_read_neox, write=_write_neox, entries=_entries_neox, widened=_biases_but_attention,
    labels=LabelHead("GPTNeoXForSequenceClassification"),
)  # fmt: skip
