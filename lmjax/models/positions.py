"""Where a token stands: Learned (GPT-2), Sinusoidal (arXiv:1706.03762, section 3.5), Rotary (arXiv:2104.09864),
Relative (T5, arXiv:1910.10683, section 2.1)."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A table of `context` vectors, added to the embedding. offset: so many rows before them are read by nobody, as
    RoBERTa has it (fairseq numbers places from behind its padding's id)."""

    offset: int = 0

    def __post_init__(self):
        if self.offset < 0:
            raise ValueError(f"offset is {self.offset}; expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class Sinusoidal:
    """Fixed sines and cosines, added to the embedding."""


def in_rows(tokens_BT: jax.Array, lengths_B: jax.Array | None = None) -> tuple[jax.Array, jax.Array | None]:
    """(positions (B, T), segments (B, T): 1, and 0 where a row is filled up) of rows that each hold one text from their
    beginning on. lengths_B: how many tokens of each are the text's; None: all, and there are no segments."""
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    return positions_BT, None if lengths_B is None else (positions_BT < lengths_B[:, None]).astype(jnp.int32)


def _positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} is {number}; expected a number above 0")


@dataclass(frozen=True, kw_only=True)
class Stretched:
    """All frequencies divided by a factor (position interpolation, arXiv:2306.15595)."""

    factor: float

    def __post_init__(self):
        _positive(factor=self.factor)

    def __call__(self, frequency: np.ndarray, theta: float, turned: int) -> tuple[np.ndarray, float]:
        return frequency / np.float32(self.factor), 1.0


@dataclass(frozen=True, kw_only=True)
class Llama3:
    """Low frequencies divided by a factor, high ones kept, a ramp between (Llama 3.1; transformers'
    modeling_rope_utils.py, "llama3"). original: the context that the model was first trained with."""

    factor: float
    low: float
    high: float
    original: int

    def __post_init__(self):
        _positive(factor=self.factor, original=self.original)
        if not self.low < self.high:
            raise ValueError(f"low is {self.low} and high {self.high}; expected low below high")

    def __call__(self, frequency: np.ndarray, theta: float, turned: int) -> tuple[np.ndarray, float]:
        turns = np.float32(self.original) * frequency / np.float32(2 * np.pi)
        kept = np.clip((turns - np.float32(self.low)) / np.float32(self.high - self.low), 0, 1)
        return ((1 - kept) * frequency / np.float32(self.factor) + kept * frequency).astype(np.float32), 1.0


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """Frequencies that turn fewer than `slow` times over the original context are divided by the factor, those that
    turn more than `fast` times kept, and queries and keys grow by `magnitude` (YaRN, arXiv:2309.00071). magnitude: None
    takes 0.1 ln(factor) + 1. whole: the ends of the ramp are rounded outwards to whole pairs."""

    factor: float
    original: int
    fast: float = 32.0
    slow: float = 1.0
    magnitude: float | None = None
    whole: bool = True

    def __post_init__(self):
        _positive(factor=self.factor, original=self.original, fast=self.fast, slow=self.slow)

    def __call__(self, frequency: np.ndarray, theta: float, turned: int) -> tuple[np.ndarray, float]:
        def pair_that_turns(times: float) -> float:
            return turned * math.log(self.original / (times * 2 * math.pi)) / (2 * math.log(theta))

        first, last = pair_that_turns(self.fast), pair_that_turns(self.slow)
        if self.whole:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, turned - 1)
        ramp = (np.arange(len(frequency), dtype=np.float32) - first) / ((last - first) or 0.001)
        kept = 1 - np.clip(ramp, 0, 1)
        magnitude = self.magnitude
        if magnitude is None:
            magnitude = 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0
        return ((1 - kept) * frequency / np.float32(self.factor) + kept * frequency).astype(np.float32), magnitude


Stretch = Stretched | Llama3 | Yarn


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Pairs (i, i + R/2) of the first R places of queries and keys turned by position x theta^(-2i/R), transformers'
    order for Llama. fraction: R over the head width; GPT-NeoX turns a quarter. stretch: for contexts longer than
    the one first trained with."""

    theta: float = 10_000.0
    fraction: float = 1.0
    stretch: Stretch | None = None

    def __post_init__(self):
        if not self.theta > 1:
            raise ValueError(f"theta is {self.theta}; expected a number above 1")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction is {self.fraction}; expected a number above 0, up to 1")

    def frequencies(self, head_width: int) -> tuple[np.ndarray, float]:
        """(radians a position for each pair, in float32; the factor by which queries and keys grow)."""
        turned = int(head_width * self.fraction)
        frequency = 1 / np.float32(self.theta) ** (np.arange(0, turned, 2, dtype=np.float32) / np.float32(turned))
        return (frequency, 1.0) if self.stretch is None else self.stretch(frequency, self.theta, turned)


@dataclass(frozen=True, kw_only=True)
class Relative:
    """A number for each head and each bucket of distances is added to the scores; one table a stack, which its layers
    share. Half of the buckets are of one distance each, the others grow by a factor up to `distance`, from where on
    all share the last; where a token sees what comes after it, each direction has half of them."""

    buckets: int = 32
    distance: int = 128

    def __post_init__(self):
        if self.buckets < 4 or self.buckets % 4:
            raise ValueError(f"buckets is {self.buckets}; expected a positive multiple of 4")
        if not self.distance > self.buckets // 2:
            raise ValueError(f"distance is {self.distance}; expected more than half of the {self.buckets} buckets")


Positions = Learned | Sinusoidal | Rotary | Relative


def sinusoid(positions_BT: jax.Array, width: int) -> jax.Array:
    """(B, T, width): sin in the even places, cos in the odd ones, wavelengths from 2 pi to 10,000 x 2 pi."""
    frequency = 10_000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle = positions_BT[..., None].astype(jnp.float32) * frequency
    pairs = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return pairs.reshape(*positions_BT.shape, -1)[..., :width]


def rotary_angles(positions_BT: jax.Array, head_width: int, rotary: Rotary) -> tuple[jax.Array, jax.Array]:
    """cos and sin, each (B, T, 1, R/2), in float32: in bfloat16 the angle at position 2,000 is wrong by radians."""
    frequency, magnitude = rotary.frequencies(head_width)
    angle = positions_BT[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return (cos, sin) if magnitude == 1 else (cos * magnitude, sin * magnitude)


def rotate(x_BTNH: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turn each pair (i, i + R/2) by its angle; what lies beyond R stays."""
    cos, sin = angles
    half = cos.shape[-1]
    x32 = x_BTNH.astype(jnp.float32)
    left, right, rest = x32[..., :half], x32[..., half : 2 * half], x32[..., 2 * half :]
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin, rest], axis=-1).astype(x_BTNH.dtype)


def buckets_of_distance(relative: Relative, causal: bool) -> np.ndarray:
    """(distance + 1,) the bucket of each distance in one direction, in float32 as transformers' modeling_t5.py has it.
    A table, so that no device's logarithm rounds a distance into another bucket."""
    count = relative.buckets if causal else relative.buckets // 2
    exact = count // 2
    distance = np.arange(relative.distance + 1)
    grown = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    grown = grown / np.float32(math.log(relative.distance / exact)) * np.float32(count - exact)
    return np.where(distance < exact, distance, np.minimum(exact + grown.astype(np.int32), count - 1))


def relative_bias(relative: Relative, table_IN: jax.Array, positions_BT, slots_S, causal: bool) -> jax.Array:
    """(B, N, T, S) in float32, of the scores of queries at these positions and keys at those. table_IN: a row a bucket;
    where not causal the second half is of keys that come after the query."""
    ahead_BTS = slots_S - positions_BT[:, :, None]
    far_BTS = jnp.maximum(-ahead_BTS, 0) if causal else jnp.abs(ahead_BTS)
    buckets_BTS = jnp.asarray(buckets_of_distance(relative, causal))[jnp.minimum(far_BTS, relative.distance)]
    if not causal:
        buckets_BTS = buckets_BTS + jnp.where(ahead_BTS > 0, relative.buckets // 2, 0)
    return jnp.moveaxis(table_IN[buckets_BTS], -1, 1)
