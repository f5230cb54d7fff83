"""What a family of checkpoints is: a function from its config.json, one back, and a table of its tensors."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from lmjax.errors import UserError
from lmjax.interop.config_json import ConfigJson
from lmjax.interop.mapping import Entry
from lmjax.models.config import ModelConfig, Span
from lmjax.models.feedforward import Experts
from lmjax.models.norms import LayerNorm

# what old versions of transformers stored beside the weights
BUFFERS = r"(^|\.)(attn|attention)\.(bias|masked_bias)$|(^|\.)rotary_emb\.inv_freq$"


@dataclass(frozen=True)
class LabelHead:
    """What stands in the files of models that give a text one label. architecture: config.json's. linear: the layer of
    the labels, on the vector of the first token, of a causal model the last. pooler: the layer before it, which all of
    these models have; None: none has it."""

    architecture: str
    linear: str = "score"
    pooler: str | None = None

    @property
    def start(self) -> str:
        """Of the names of its tensors, which have no prefix before them."""
        return f"{self.linear.partition('.')[0]}."

    def entries(self, cfg: ModelConfig) -> list[Entry]:
        """Of the linear layer; that of a causal model has no bias."""
        ours, bias = "outputs/dense", [] if cfg.causal else [("bias", "C -> C")]
        return [
            Entry(f"{ours}/{name}", f"{self.linear}.{'bias' if name == 'bias' else 'weight'}", pattern)
            for name, pattern in [("kernel", "C D -> D C"), *bias]
        ]


@dataclass(frozen=True)
class Family:
    """model_type, architecture: config.json's. read: its fields as a ModelConfig; raises UserError. write: the fields
    that describe a ModelConfig as well as the family can. entries: the tensors; without `prefix`, which transformers
    puts before all names but the head's and those that begin as `heads` say. optional: for parts that only some files
    have, by their fields of ModelConfig, a tensor that shows them. labels: the head of its models that label texts.
    bare: the architecture of a model that has no head.
    renamed: ends of names as they were, and as they are. prefixes: all that has ever stood there. copies: tensors that
    are the embedding once more, in some files. ignored: names of buffers, and of parts that are no language model.
    widened: the model that is written where it is not the given one but computes the same, such as one with zeros for
    biases. stands_in: for a parameter of the widened model that the given one has not, the one that is written in its
    place; a bias without one is zero."""

    model_type: str
    architecture: str
    prefix: str
    read: Callable[[ConfigJson], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    entries: Callable[[ModelConfig], list[Entry]]
    embedding: str
    head: str = "lm_head.weight"
    heads: tuple[str, ...] = ()
    optional: dict[str, str] = field(default_factory=dict)
    labels: LabelHead | None = None
    bare: str | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    prefixes: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    ignored: str = BUFFERS
    widened: Callable[[ModelConfig], ModelConfig] = lambda cfg: cfg
    stands_in: dict[str, str] = field(default_factory=dict)

    def canonical(self, name: str) -> str | None:
        """A tensor's name without what was put before it; None for what is ignored."""
        stripped = name
        while prefix := next((p for p in (self.prefix, *self.prefixes) if p and stripped.startswith(p)), None):
            stripped = stripped.removeprefix(prefix)
        for old, new in self.renamed.items():
            stripped = stripped.removesuffix(old) + new if stripped.endswith(old) else stripped
        return None if re.search(self.ignored, stripped) else stripped

    def exported(self, name: str) -> str:
        """The name that transformers gives it."""
        bare = (self.head, *self.heads, *([self.labels.start] if self.labels else []))
        return name if name.startswith(bare) else self.prefix + name

    def architecture_of(self, cfg: ModelConfig) -> str:
        """What config.json calls a model that is written."""
        if cfg.outputs:
            return self.labels.architecture
        return self.bare if self.bare is not None and not cfg.masked_head else self.architecture

    def with_parts(self, cfg: ModelConfig, has: Callable[[str, str], bool]) -> ModelConfig:
        """cfg, which has all optional parts, without those for which `has(field, tensor)` is False."""
        return replace(
            cfg, **{name: getattr(_BARE, name) for name, tensor in self.optional.items() if not has(name, tensor)}
        )

    def labelling(self, cfg: ModelConfig, count: int) -> ModelConfig:
        """cfg as the model for so many labels, which predicts no tokens and has no parts for that."""
        return replace(cfg, outputs=count, tied=True, masked_head=None, pooler=self.labels.pooler is not None)

    def all_entries(self, cfg: ModelConfig) -> list[Entry]:
        """With the output's matrix, where it is not the embedding, and the layer of the labels."""
        head = [] if cfg.tied else [Entry("unembedding", self.head, "V D -> V D")]
        head += self.labels.entries(cfg) if cfg.outputs else []
        return [Entry("embedding", self.embedding, "V D -> V D"), *self.entries(cfg), *head]


def norm_entries(ours: str, theirs: str, cfg: ModelConfig, axis: str = "D") -> list[Entry]:
    """A norm's scale, and its bias where it has one."""
    entries = [Entry(f"{ours}/scale", f"{theirs}.weight", f"{axis} -> {axis}")]
    if isinstance(cfg.norm, LayerNorm) and cfg.norm.bias:
        entries.append(Entry(f"{ours}/bias", f"{theirs}.bias", f"{axis} -> {axis}"))
    return entries


def normal(cfg: ModelConfig) -> ModelConfig:
    """With one spelling for each model, and without what does not change its function."""
    period = next(n for n in range(1, len(cfg.pattern) + 1) if _repeats(cfg, n))
    feedforward = replace(cfg.feedforward, width=cfg.hidden)
    if isinstance(feedforward, Experts):
        feedforward = replace(
            feedforward, **{name: getattr(_EXPERTS, name) for name in ("balance", "router_z_loss", "capacity")}
        )
    return replace(
        cfg, kv_heads=cfg.n_kv_heads, head_dim=cfg.head_width, feedforward=feedforward,
        out_bias=cfg.bias if cfg.out_bias is None else cfg.out_bias, pattern=_plain(cfg)[:period],
        score_scale=cfg.head_width**-0.5 if cfg.score_scale is None else cfg.score_scale,
        dropout=0.0, init_std=0.02, autoencoder=None,
        **{name: getattr(_BARE, name) for name in ("dtype", "equal_keys", "kernel", "products", "remat", "unroll")},
    )  # fmt: skip


_BARE = ModelConfig(layers=1, width=2, heads=1, context=2)
_EXPERTS = Experts()


def _plain(cfg: ModelConfig) -> tuple[Span, ...]:
    """The pattern of all layers; angles that are the model's own are not said twice."""
    spans = [cfg.pattern[i % len(cfg.pattern)] for i in range(cfg.layers)]
    return tuple(replace(span, rotary=None) if span.rotary == cfg.positions else span for span in spans)


def _repeats(cfg: ModelConfig, period: int) -> bool:
    spans = _plain(cfg)
    return all(span == spans[i % period] for i, span in enumerate(spans))


def pattern_of(spans: list[Span]) -> tuple[Span, ...]:
    """The shortest beginning that the list of all layers' spans repeats."""
    fits = (n for n in range(1, len(spans) + 1) if all(span == spans[i % n] for i, span in enumerate(spans)))
    return tuple(spans[: next(fits)])


def layer_types(config: ConfigJson, layers: int, otherwise: Callable[[int], bool]) -> list[bool]:
    """For each layer whether its window slides: `layer_types`, or where there is none what `otherwise` says."""
    given = config.values.get("layer_types")
    if given is None:
        return [otherwise(i) for i in range(layers)]
    known = ("sliding_attention", "full_attention")
    if not isinstance(given, list) or len(given) != layers or any(kind not in known for kind in given):
        raise UserError(
            f"{config.where}: layer_types is {str(given)[:80]}; expected {layers} times sliding_attention or "
            "full_attention"
        )
    return [kind == "sliding_attention" for kind in given]


def their_layer_types(cfg: ModelConfig) -> list[str]:
    """The pattern as `layer_types`."""
    spans = [cfg.pattern[i % len(cfg.pattern)] for i in range(cfg.layers)]
    return ["full_attention" if span.window is None else "sliding_attention" for span in spans]


def only_window(cfg: ModelConfig) -> int | None:
    """The largest window of the pattern, for families that have one; None where there is none."""
    return max((span.window for span in cfg.pattern if span.window is not None), default=None)
