"""T5 v1.0 (arXiv:1910.10683) and v1.1: an encoder and a decoder."""

from lmjax.errors import UserError
from lmjax.interop.config_json import ACTIVATIONS, THEIR_ACTIVATIONS, ConfigJson
from lmjax.interop.family import BUFFERS, Family
from lmjax.interop.mapping import Entry
from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Dense, Gated
from lmjax.models.norms import RMSNorm
from lmjax.models.positions import Relative

# "gated-gelu" is the approximation, as "gelu_new" (transformers' configuration_t5.py)
THEIR_GATED = THEIR_ACTIVATIONS | {"gelu_tanh": "gelu", "gelu": "gelu_python"}


def _feedforward(c: ConfigJson) -> Dense | Gated:
    width, kind = c.whole("d_ff"), c.text("feed_forward_proj", "relu")
    gated, name = kind.startswith("gated-"), kind.removeprefix("gated-")
    name = "gelu_new" if kind == "gated-gelu" else name
    if name not in ACTIVATIONS:
        raise UserError(
            f"{c.where}: feed_forward_proj is {kind!r}; expected gated-gelu or one of {', '.join(ACTIVATIONS)}"
        )
    return (Gated if gated else Dense)(width=width, activation=ACTIVATIONS[name], bias=False)


def _read(c: ConfigJson) -> ModelConfig:
    tied = c.flag("tie_word_embeddings", True)
    layers = c.count("num_layers")
    return ModelConfig(
        layers=c.count("num_decoder_layers", layers), encoder_layers=layers, width=c.whole("d_model"),
        heads=c.whole("num_heads"), head_dim=c.whole("d_kv"), vocab=c.whole("vocab_size"),
        context=c.whole("n_positions", 512), feedforward=_feedforward(c), bias=False, score_scale=1.0,
        positions=Relative(
            buckets=c.whole("relative_attention_num_buckets", 32),
            distance=c.whole("relative_attention_max_distance", 128),
        ),
        norm=RMSNorm(epsilon=c.number("layer_norm_epsilon", 1e-6)), tied=tied,
        # v1.0 is tied and scaled, v1.1 is neither; only transformers 5 has a word for it
        scaled_output=c.flag("scale_decoder_outputs", tied),
    )  # fmt: skip


def _write(cfg: ModelConfig) -> dict:
    ff, positions = cfg.feedforward, cfg.positions if isinstance(cfg.positions, Relative) else Relative()
    gated = not isinstance(ff, Dense)
    activation = f"gated-{THEIR_GATED[ff.activation]}" if gated else THEIR_ACTIVATIONS[ff.activation]
    return {
        "is_encoder_decoder": True, "num_layers": max(1, cfg.encoder_layers), "num_decoder_layers": cfg.layers,
        "d_model": cfg.width, "num_heads": cfg.heads, "d_kv": cfg.head_width, "d_ff": cfg.hidden,
        "vocab_size": cfg.vocab, "n_positions": cfg.context, "feed_forward_proj": activation,
        "relative_attention_num_buckets": positions.buckets, "relative_attention_max_distance": positions.distance,
        "layer_norm_epsilon": cfg.norm.epsilon, "dropout_rate": cfg.dropout, "tie_word_embeddings": cfg.tied,
        "scale_decoder_outputs": cfg.scaled_output,
    }  # fmt: skip


def _attention(ours: str, theirs: str) -> list[Entry]:
    names = (("q", "(N H) D -> D N H"), ("k", "(K H) D -> D K H"), ("v", "(K H) D -> D K H"))
    entries = [Entry(f"{ours}/{name}/kernel", f"{theirs}.{name}.weight", pattern) for name, pattern in names]
    return [*entries, Entry(f"{ours}/out/kernel", f"{theirs}.o.weight", "D (N H) -> N H D")]


def _stack(cfg: ModelConfig, ours: str, theirs: str, parts: dict[str, str]) -> list[Entry]:
    """One stack. ours: what stands before its parameters. parts: its sublayers in order, by their names there."""
    bias = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    entries = [
        Entry(f"{ours}relative", bias, "R N -> R N"),
        Entry(f"{ours}final_norm/scale", f"{theirs}.final_layer_norm.weight", "D -> D"),
    ]
    for i, (name, their_name) in enumerate(parts.items()):
        block, layer = f"{ours}blocks/{name}", f"{theirs}.block.{{layer}}.layer.{i}"
        entries.append(Entry(f"{block}_norm/scale", f"{layer}.layer_norm.weight", "D -> D"))
        layer = f"{layer}.{their_name}"
        if name != "feedforward":
            entries += _attention(block, layer)
            continue
        up = {"gate": "wi_0", "up": "wi_1"} if isinstance(cfg.feedforward, Gated) else {"up": "wi"}
        entries += [Entry(f"{block}/{o}/kernel", f"{layer}.{t}.weight", "F D -> D F") for o, t in up.items()]
        entries.append(Entry(f"{block}/down/kernel", f"{layer}.wo.weight", "D F -> F D"))
    return entries


def _entries(cfg: ModelConfig) -> list[Entry]:
    own, last = {"attention": "SelfAttention"}, {"feedforward": "DenseReluDense"}
    return [
        *_stack(cfg, "encoder/", "encoder", own | last),
        *_stack(cfg, "", "decoder", own | {"cross_attention": "EncDecAttention"} | last),
    ]


T5 = Family(
    model_type="t5", architecture="T5ForConditionalGeneration", prefix="", embedding="shared.weight", read=_read,
    write=_write, entries=_entries, copies=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    # of a bias that no code reads
    ignored=rf"{BUFFERS}|EncDecAttention\.relative_attention_bias",
)  # fmt: skip
