"""Optimizers and schedules as data. Each gives a direction; clipping, decay and step size are the same for all."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon
from optax.contrib._muon import scale_by_shape

from lmjax.models import lora
from lmjax.trees import map_named


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """arXiv:1711.05101. Biased moments are corrected; eps is added outside the root, as in PyTorch."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float | None = 1.0

    def direction(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps)


@dataclass(frozen=True, kw_only=True)
class Adafactor:
    """arXiv:1804.04235: second moments of matrices kept as a row and a column; no momentum."""

    decay: float = 0.8
    clipping_threshold: float = 1.0
    min_factored: int = 128
    weight_decay: float = 0.0
    clip: float | None = None

    def direction(self) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_factored_rms(decay_rate=self.decay, min_dim_size_to_factor=self.min_factored),
            optax.clip_by_block_rms(self.clipping_threshold),
        )


@dataclass(frozen=True, kw_only=True)
class Lion:
    """arXiv:2302.06675: the sign of an average of gradients. Wants a third to a tenth of AdamW's step size."""

    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 1.0
    clip: float | None = 1.0

    def direction(self) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2)


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Momentum, orthogonalised by Newton-Schulz, for the matrices of the blocks; AdamW for everything else
    (kellerjordan.github.io/posts/muon, arXiv:2502.16982). The schedule is Muon's; AdamW's step is `adam_scale` of it.

    The update of a matrix with fan_in rows and fan_out columns is scaled by sqrt(max(1, fan_out / fan_in)).
    """

    beta: float = 0.95
    newton_schulz_steps: int = 5
    adam_scale: float = 0.15
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = None

    def direction(self) -> optax.GradientTransformation:
        orthogonal = optax.chain(
            scale_by_muon(ns_steps=self.newton_schulz_steps, beta=self.beta, weight_dimension_numbers=_muon_axes),
            scale_by_shape(weight_dimension_numbers=_muon_axes),
        )
        adam = optax.chain(optax.scale_by_adam(self.b1, self.b2, self.eps), optax.scale(self.adam_scale))
        return optax.partition({"muon": orthogonal, "adam": adam}, _muon_labels)


Optimizer = AdamW | Adafactor | Lion | Muon


def check(optimizer: Optimizer) -> None:
    """Raise ValueError for a setting with which no step makes sense."""
    for name, value in vars(optimizer).items():
        if name in ("b1", "b2", "beta", "decay") and not 0 <= value < 1:
            raise ValueError(f"optimizer.{name} is {value}; expected a number from 0 to below 1")
        if name in ("eps", "weight_decay", "adam_scale") and value < 0:
            raise ValueError(f"optimizer.{name} is {value}; expected 0 or more")
        if (
            name in ("clip", "clipping_threshold", "newton_schulz_steps", "min_factored")
            and value is not None
            and value <= 0
        ):
            raise ValueError(f"optimizer.{name} is {value}; expected a positive number")


def is_matrix(name: str) -> bool:
    """Whether a parameter is a matrix: all but biases and the scales of norms (nanoGPT's rule, by name, since a
    stacked scale has two axes too)."""
    return name.rsplit("/", 1)[-1] not in ("bias", "scale")


def decay_mask(params):
    """True where weight decay applies."""
    return map_named(lambda name, _: is_matrix(name), params)


def _muon_labels(params):
    def label(name, _):
        # a router chooses among experts, as the unembedding among tokens
        inside = name.removeprefix("encoder/").startswith("blocks/") and "/router" not in name
        return "muon" if inside and is_matrix(name) else "adam"

    return map_named(label, params)


def _muon_axes(params):
    """Stacked kernels are (L, in, out), (L, D, N, H) or, for attention's output, (L, N, H, D). Experts are (L, E, in,
    out), each expert a matrix of its own. An adapter's A and B are matrices as their weight is."""

    def axes(name, x):
        if x.ndim == 4 and "/feedforward/" in name:
            return MuonDimensionNumbers((2,), (3,))
        inputs = x.ndim - 2 if name.endswith(("out/kernel", f"out/kernel/{lora.A}")) else 1
        return MuonDimensionNumbers(tuple(range(1, 1 + inputs)), tuple(range(1 + inputs, x.ndim)))

    return map_named(axes, params)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Step sizes over a run. peak: the largest. warmup: the share of all steps in which it rises linearly to the
    peak, (i + 1) / (w + 1) of it in the i-th of w steps, counted from 0 (nanoGPT's get_lr)."""

    peak: float
    warmup: float = 0.0

    def __post_init__(self):
        if self.peak <= 0:
            raise ValueError(f"peak is {self.peak}; expected a positive number")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}; expected a share of the steps, from 0 to below 1")

    def after_warmup(self, share: jax.Array) -> jax.Array:
        """Step size as a fraction of the peak, share of the remaining steps done from 0 to 1."""
        raise TypeError("a member of the union says this")

    def rate(self, step, steps: int) -> jax.Array:
        """The step size of update `step`, counted from 0, in a run of `steps`."""
        warm = round(self.warmup * steps)
        step = jnp.asarray(step, jnp.float32)
        share = jnp.clip((step - warm) / max(1, steps - warm), 0.0, 1.0)
        return self.peak * jnp.where(step < warm, (step + 1) / (warm + 1), self.after_warmup(share))


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """At the peak to the end."""

    def after_warmup(self, share):
        return jnp.ones_like(share)


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """Down to `floor`, an absolute step size, in a straight line."""

    floor: float = 0.0

    def after_warmup(self, share):
        return 1 - share * (1 - self.floor / self.peak)


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Down to `floor`, an absolute step size, along half a cosine (arXiv:1608.03983), in the first `share` of the
    steps after warm-up; then it stays there."""

    floor: float = 0.0
    share: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; expected a share above 0, up to 1")

    def after_warmup(self, share):
        low = self.floor / self.peak
        return low + (1 - low) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(share / self.share, 1.0)))


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay(Schedule):
    """At the peak until the last `decay` share of the steps after warm-up, then down to `floor` in a straight line
    (arXiv:2404.06395)."""

    decay: float = 0.2
    floor: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay is {self.decay}; expected a share above 0, up to 1")

    def after_warmup(self, share):
        done = jnp.clip((share - (1 - self.decay)) / self.decay, 0.0, 1.0)
        return 1 - done * (1 - self.floor / self.peak)


@dataclass(frozen=True, kw_only=True)
class InverseSquareRoot(Schedule):
    """Down with one over the square root of the step (arXiv:1706.03762, section 5.3, where the peak is
    (width x warm-up steps) ** -0.5). Needs a warm-up."""

    def __post_init__(self):
        super().__post_init__()
        if self.warmup == 0:
            raise ValueError("warmup is 0; expected a share of the steps, above 0 to below 1")

    def after_warmup(self, share):
        return jnp.sqrt(self.warmup / (self.warmup + share * (1 - self.warmup)))


AnySchedule = Constant | Linear | Cosine | WarmupStableDecay | InverseSquareRoot


def transform(optimizer: Optimizer, schedule: AnySchedule, steps: int) -> optax.GradientTransformation:
    """Gradients (means over all target tokens) to updates: clip by global norm, direction, decay, step size.

    Decay is decoupled: each step takes rate x weight_decay of every matrix away. The order is fixed, so clipping
    sees the whole accumulated gradient once.
    """
    clip = optax.identity() if optimizer.clip is None else optax.clip_by_global_norm(optimizer.clip)
    return optax.chain(
        clip,
        optimizer.direction(),
        optax.add_decayed_weights(optimizer.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(lambda count: schedule.rate(count, steps)),
    )
