"""BERT (arXiv:1810.04805) and RoBERTa (arXiv:1907.11692): encoders, with the heads that their files have."""

from dataclasses import replace

from lmjax.errors import UserError
from lmjax.interop.config_json import THEIR_ACTIVATIONS, ConfigJson
from lmjax.interop.family import BUFFERS, Family, LabelHead, norm_entries
from lmjax.interop.mapping import Entry
from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Activation, Dense
from lmjax.models.norms import LayerNorm
from lmjax.models.positions import Learned

# of BERT's second task, whether two sentences follow one another, and copies of the output's bias
IGNORED = rf"{BUFFERS}|(^|\.)position_ids$|(^|\.)token_type_ids$|seq_relationship|(^|\.)decoder\.bias$"
# as TensorFlow's checkpoints have it
RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def _read(c: ConfigJson, context: int, offset: int, types: int, head: Activation | None = None) -> ModelConfig:
    """head: the activation of the masked head, where it is not the feed-forward layers'."""
    activation = c.activation("hidden_act", "gelu")
    c.only("position_embedding_type", "absolute")
    c.only("is_decoder", False)
    c.only("add_cross_attention", False)
    return ModelConfig(
        layers=c.count("num_hidden_layers"), width=c.whole("hidden_size"), heads=c.whole("num_attention_heads"),
        context=context, vocab=c.whole("vocab_size"), positions=Learned(offset=offset),
        norm=LayerNorm(epsilon=c.number("layer_norm_eps", 1e-12)),
        feedforward=Dense(width=c.whole("intermediate_size"), activation=activation), masked_head=head or activation,
        causal=False, norm_first=False, embedding_norm=True, pooler=True, token_types=c.whole("type_vocab_size", types),
        tied=c.flag("tie_word_embeddings", True), init_std=c.number("initializer_range", 0.02),
    )  # fmt: skip


def _write(cfg: ModelConfig, offset: int) -> dict:
    return {
        "num_hidden_layers": cfg.layers, "hidden_size": cfg.width, "num_attention_heads": cfg.heads,
        "max_position_embeddings": cfg.context + offset, "type_vocab_size": max(1, cfg.token_types),
        "vocab_size": cfg.vocab, "layer_norm_eps": getattr(cfg.norm, "epsilon", None), "intermediate_size": cfg.hidden,
        "hidden_act": THEIR_ACTIVATIONS[cfg.feedforward.activation], "tie_word_embeddings": cfg.tied,
        "initializer_range": cfg.init_std, "hidden_dropout_prob": cfg.dropout,
        "attention_probs_dropout_prob": cfg.dropout, "position_embedding_type": "absolute",
    }  # fmt: skip


def _linear(ours: str, theirs: str, weight: str, bias: str) -> list[Entry]:
    return [Entry(f"{ours}/kernel", f"{theirs}.weight", weight), Entry(f"{ours}/bias", f"{theirs}.bias", bias)]


def _body(cfg: ModelConfig, pooler: str = "pooler.dense") -> list[Entry]:
    block, layer = "blocks/", "encoder.layer.{layer}."
    entries = [
        Entry("positions", "embeddings.position_embeddings.weight", "P D -> P D"),
        Entry("token_types", "embeddings.token_type_embeddings.weight", "I D -> I D"),
        *norm_entries("embedding_norm", "embeddings.LayerNorm", cfg),
    ]
    for ours, name in (("q", "query"), ("k", "key"), ("v", "value")):
        theirs = f"{layer}attention.self.{name}"
        entries += _linear(f"{block}attention/{ours}", theirs, "(N H) D -> D N H", "(N H) -> N H")
    entries += [
        *_linear(f"{block}attention/out", f"{layer}attention.output.dense", "D (N H) -> N H D", "D -> D"),
        *norm_entries(f"{block}attention_norm", f"{layer}attention.output.LayerNorm", cfg),
        *_linear(f"{block}feedforward/up", f"{layer}intermediate.dense", "F D -> D F", "F -> F"),
        *_linear(f"{block}feedforward/down", f"{layer}output.dense", "D F -> F D", "D -> D"),
        *norm_entries(f"{block}feedforward_norm", f"{layer}output.LayerNorm", cfg),
    ]
    if cfg.pooler:
        entries += _linear("pooler/dense", pooler, "O D -> D O", "D -> D")
    return entries


def _head(cfg: ModelConfig, dense: str, norm: str, bias: str) -> list[Entry]:
    if not cfg.masked_head:
        return []
    return [
        *_linear("masked_head/dense", dense, "O D -> D O", "D -> D"),
        *norm_entries("masked_head/norm", norm, cfg), Entry("masked_head/bias", bias, "V -> V"),
    ]  # fmt: skip


def _read_bert(c: ConfigJson) -> ModelConfig:
    return _read(c, c.whole("max_position_embeddings"), 0, 2)


def _entries_bert(cfg: ModelConfig) -> list[Entry]:
    start = "cls.predictions."
    return _body(cfg) + _head(cfg, f"{start}transform.dense", f"{start}transform.LayerNorm", f"{start}bias")


BERT = Family(
    model_type="bert", architecture="BertForMaskedLM", prefix="bert.", embedding="embeddings.word_embeddings.weight",
    head="cls.predictions.decoder.weight", heads=("cls.",), read=_read_bert, write=lambda cfg: _write(cfg, 0),
    entries=_entries_bert, ignored=IGNORED, renamed=RENAMED, bare="BertModel",
    optional={"masked_head": "cls.predictions.transform.dense.weight", "pooler": "pooler.dense.weight"},
    labels=LabelHead("BertForSequenceClassification", "classifier", "pooler.dense"),
)  # fmt: skip


def _read_roberta(c: ConfigJson) -> ModelConfig:
    # places are numbered from behind the padding's id
    offset = int(c.number("pad_token_id", 1)) + 1
    rows = c.whole("max_position_embeddings")
    if rows - offset < 2:
        raise UserError(f"{c.where}: max_position_embeddings is {rows}; expected more than pad_token_id + 2")
    return _read(c, rows - offset, offset, 2, head="gelu")


def _write_roberta(cfg: ModelConfig) -> dict:
    offset = cfg.positions.offset if isinstance(cfg.positions, Learned) else 2
    return _write(cfg, offset) | {"pad_token_id": max(0, offset - 1)}


def _entries_roberta(cfg: ModelConfig) -> list[Entry]:
    # the layer before the labels is the pooler by another name
    body = _body(cfg, ROBERTA.labels.pooler) if cfg.outputs else _body(cfg)
    return body + _head(cfg, "lm_head.dense", "lm_head.layer_norm", "lm_head.bias")


ROBERTA = replace(
    BERT, model_type="roberta", architecture="RobertaForMaskedLM", prefix="roberta.", head="lm_head.decoder.weight",
    heads=("lm_head.",), read=_read_roberta, write=_write_roberta, entries=_entries_roberta, bare="RobertaModel",
    optional={"masked_head": "lm_head.dense.weight", "pooler": "pooler.dense.weight"},
    labels=LabelHead("RobertaForSequenceClassification", "classifier.out_proj", "classifier.dense"),
)  # fmt: skip
