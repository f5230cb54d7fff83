"""What follows from the experiment alone: parameters, FLOPs, bytes. No device, no compiler."""

import math
from dataclasses import dataclass

from lmjax.experiment import Experiment
from lmjax.models.config import ModelConfig, Remat
from lmjax.models.feedforward import Dense, Experts
from lmjax.models.lora import is_table
from lmjax.models.transformer import abstract_params
from lmjax.trained import parts
from lmjax.trees import named_leaves

PETAFLOP_DAY = 1e15 * 86_400

PARTS = {
    "embedding": "embedding", "positions": ("positions", "relative"), "token types": "token_types",
    "attention": ("blocks/attention/", "blocks/cross_attention/"), "feed-forward": "blocks/feedforward/", "norms": "",
    "unembedding": "unembedding", "heads": ("masked_head", "pooler", "outputs"),
    "autoencoder": "autoencoder/",
}  # fmt: skip

# what the probabilities of tokens are made by
OF_TOKENS = ("embedding", "unembedding", "masked_head/")


def params_by_part(cfg: ModelConfig) -> dict[str, int]:
    """Parameters of each part that the model has; they add up to N."""
    counts = dict.fromkeys(PARTS, 0)
    for name, leaf in named_leaves(abstract_params(cfg)):
        own = name.removeprefix("encoder/")
        part = next((part for part, start in PARTS.items() if start and own.startswith(start)), "norms")
        counts[part] += math.prod(leaf.shape)
    return {part: number for part, number in counts.items() if number}


def params(cfg: ModelConfig) -> int:
    """N, every parameter."""
    return sum(params_by_part(cfg).values())


def used_params(cfg: ModelConfig) -> int:
    """The parameters that one token is multiplied by, as MFU counts them: all but the position table, and of a
    mixture only the experts that it goes to."""
    total = params(cfg) - params_by_part(cfg).get("positions", 0)
    if isinstance(ff := cfg.feedforward, Experts):
        total -= expert_params(cfg) // ff.count * (ff.count - ff.chosen)
    return total


def expert_params(cfg: ModelConfig) -> int:
    """Those of all experts of a mixture; the router is not among them."""
    ff = cfg.feedforward
    return 3 * cfg.layers * cfg.width * cfg.hidden * ff.count if isinstance(ff, Experts) else 0


def source_params(cfg: ModelConfig) -> int:
    """Of an encoder-decoder those that a token of the source is multiplied by: the encoder's, and of every layer of the
    decoder what makes keys and values of it."""
    ours = ("encoder/", "blocks/cross_attention/k/", "blocks/cross_attention/v/")
    leaves = named_leaves(abstract_params(cfg)) if cfg.encoder_layers else []
    return sum(math.prod(x.shape) for name, x in leaves if name.startswith(ours) and name != "encoder/relative")


def source_pairs(cfg: ModelConfig, source_length: int | None) -> float:
    """Of an encoder-decoder the pairs of a query and a key of the source, of all layers, for each token of the
    target."""
    S, T = source_length or cfg.context, cfg.context
    return (cfg.layers * S + cfg.encoder_layers * S * S / T) if cfg.encoder_layers else 0


def per_target(cfg: ModelConfig, source_length: int | None) -> float:
    """Parameters that are multiplied for each token of the target beyond `used_params`, where the encoder's rows are
    longer (or, below 0, shorter) than the decoder's."""
    return source_params(cfg) * ((source_length or cfg.context) / cfg.context - 1)


def flops_per_token(cfg: ModelConfig, source_length: int | None = None) -> int:
    """6 N + 12 L H Q T (PaLM, arXiv:2204.02311, appendix B): N as `used_params`, the whole square of attention,
    nothing for recomputation. Of an encoder-decoder: for a token of the target, with its share of a source that has
    rows of source_length tokens (None: as the target's)."""
    pairs = cfg.layers * cfg.context + source_pairs(cfg, source_length)
    used = used_params(cfg) + per_target(cfg, source_length)
    return round(6 * used + 12 * cfg.heads * cfg.head_width * pairs)


def passed_by(experiment: Experiment) -> float:
    """The parameters that one token is multiplied by and of which no gradient is taken, as they are frozen."""
    cfg, which, total = experiment.model, parts(experiment), 0.0
    for path, leaf in named_leaves(abstract_params(cfg)):
        unembeds = cfg.tied and path == "embedding"
        if path in which.trained or path in which.adapted or (is_table(path) and not unembeds):
            continue
        of_experts = isinstance(cfg.feedforward, Experts) and leaf.ndim == 4 and "/feedforward/" in path
        used = cfg.feedforward.chosen / cfg.feedforward.count if of_experts else 1
        used *= predicted_share(experiment) if path.startswith(OF_TOKENS) else 1
        if cfg.autoencoder is not None and path.startswith("blocks/"):
            # below its site 4 of 6 FLOPs are saved, since nothing passes through; above it nothing is computed
            below = (cfg.autoencoder.layer + 1) / cfg.layers
            used *= 2 * below + 3 * (1 - below)
        total += math.prod(leaf.shape) * used
    return total


def predicted_share(experiment: Experiment) -> float:
    """Of the places of a row those whose tokens' probabilities are computed."""
    return experiment.task.predicted(experiment.length) / experiment.length


def unpredicted(experiment: Experiment) -> float:
    """The parameters of the head of masked tokens and the unembedding that a token in the mean is not multiplied by, as
    the task predicts the tokens of some places of a row alone, or of none."""
    cfg = experiment.model
    head = sum(math.prod(leaf.shape) for path, leaf in named_leaves(abstract_params(cfg)) if "masked_head/" in path)
    return (1 - predicted_share(experiment)) * (cfg.vocab * cfg.width + head)


def graded_share(experiment: Experiment) -> float:
    """Of all parameters those of which a gradient is taken."""
    which = parts(experiment)
    leaves = [(path, math.prod(leaf.shape)) for path, leaf in named_leaves(abstract_params(experiment.model))]
    graded = sum(number for path, number in leaves if path in which.trained or path in which.adapted)
    return graded / params(experiment.model)


def trained_flops_per_token(experiment: Experiment) -> float:
    """`flops_per_token` without the gradients that freezing saves, 2 for each parameter that is passed by, and without
    what is not predicted, 6 for each parameter."""
    whole = flops_per_token(experiment.model_of_rows, experiment.source_length)
    return whole - 2 * passed_by(experiment) - 6 * unpredicted(experiment)


@dataclass(frozen=True)
class Work:
    """What a device really computes for one token, in FLOPs. recomputed: what the remat policy makes twice."""

    products: float
    attention: float
    recomputed: float

    @property
    def total(self) -> float:
        return self.products + self.attention + self.recomputed


def work_per_token(cfg: ModelConfig, source_length: int | None = None) -> Work:
    """A look-up multiplies nothing; a causal kernel reads half the keys, and of a window only its width; an encoder's
    and one between two stacks reads all. Scores that a kernel makes again in its backward pass do not count.
    source_length: as `flops_per_token`."""
    untied = 0 if cfg.tied else params_by_part(cfg)["embedding"]
    multiplied = used_params(cfg) - untied + per_target(cfg, source_length)
    unembedding = cfg.vocab * cfg.width
    seen = [min(span.window or cfg.context, cfg.context) for span in cfg.pattern]
    # the mean number of keys that a query sees, over all places of a row and all layers
    keys = sum(window * (1 - (window - 1) / (2 * cfg.context)) for window in seen) / len(seen)
    keys = keys if cfg.causal else cfg.context
    look = 4 * cfg.heads * cfg.head_width * (cfg.layers * keys + source_pairs(cfg, source_length))
    blocks = 2 * (multiplied - unembedding)
    # jax.checkpoint's policy keeps what plain products gave, and those of experts are batched or ragged
    ff = cfg.feedforward
    experts = 6 * cfg.layers * ff.chosen * cfg.width * cfg.hidden if isinstance(ff, Experts) else 0
    again = {"nothing": 0.0, "products": experts, "attention": blocks}
    return Work(6 * multiplied, 3 * look, again.get(cfg.remat, blocks + look))


def kept_activations(experiment: Experiment) -> float:
    """Bytes of activations on the devices that the backward pass of one microbatch needs, over all of them, by remat
    policy."""
    cfg = experiment.model
    decoder, encoder = layer_activations(experiment, cfg.remat)
    return cfg.layers * decoder + cfg.encoder_layers * encoder


def layer_activations(experiment: Experiment, remat: Remat) -> tuple[float, float]:
    """(of one layer, of one of the encoder, 0 where there is none), as `kept_activations` counts them. Of each block a
    policy (ModelConfig) keeps its input; what attention gave, with its softmax's sums in float32; what the matrix
    products with weights gave, where something is computed from it (of the last one nothing is; the products of experts
    are batched or ragged, and come again); and without remat what goes into each product."""
    cfg = experiment.model_of_rows
    size = 2 if cfg.dtype == "bfloat16" else 4
    gated, experts = not isinstance(cfg.feedforward, Dense), isinstance(cfg.feedforward, Experts)
    heads = (cfg.heads + 2 * cfg.n_kv_heads) * cfg.head_width
    hidden = 0 if experts else (1 + gated) * cfg.hidden
    attended = cfg.heads * cfg.head_width + cfg.heads * 4 / size
    products = heads + cfg.width + hidden
    into = 2 * cfg.width + (cfg.feedforward.chosen * 3 if experts else 1) * cfg.hidden
    numbers = {
        "nothing": cfg.width + attended + products + into, "products": cfg.width + attended + products,
        "attention": cfg.width + attended, "everything": cfg.width, "offload": 0,
    }[remat]  # fmt: skip
    rows = experiment.microbatch_size * size
    if not cfg.encoder_layers:
        return rows * cfg.context * numbers, 0
    # attention to the source: queries of a target, keys and values of the source
    queries, keys = cfg.heads * cfg.head_width, 2 * cfg.n_kv_heads * cfg.head_width
    between = queries + cfg.width + keys * experiment.source_length / cfg.context
    kept = {"nothing": attended + between + cfg.width, "products": attended + between, "attention": attended}
    return rows * cfg.context * (numbers + kept.get(remat, 0)), rows * experiment.source_length * numbers


def three_digits(number: float) -> str:
    """As the papers print it: 3.14e23, 3,640, 27.4, 0.05."""
    if number >= 1e6:
        mantissa, exponent = f"{number:.2e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    if number <= 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(number)))
    rounded = float(f"{number:.3g}")
    return f"{rounded:,.{digits}f}" if digits else f"{rounded:,.0f}"
