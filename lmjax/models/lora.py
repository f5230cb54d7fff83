"""LoRA (arXiv:2106.09685): a weight plus the product of two thin matrices, (alpha / rank) A B.

A weight is a matrix whatever its axes: what lies before it are layers and experts, each with an A and a B of its own;
then come its inputs and its outputs, several axes each where heads are apart. A and B keep those axes, so that they
are split over a mesh as the weight is.
"""

import itertools
import zlib
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp

LEADING = ("layers", "experts")
TABLES = ("embedding", "positions", "token_types")
A, B = "lora_a", "lora_b"


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """weights: patterns of paths, such as "blocks/attention/*/kernel", of the weights that are adapted; those of the
    default are the paper's (section 4.2 and table 5). train: patterns of what is trained itself beside A and B, such as
    "*/bias" or a head that is new. All else is frozen."""

    rank: int = 8
    alpha: float = 16.0
    weights: tuple[str, ...] = ("blocks/attention/q/kernel", "blocks/attention/v/kernel")
    train: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("rank", "alpha"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive number")
        if not self.weights:
            raise ValueError("weights is empty; expected patterns of weights to adapt")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class Sides:
    """The axes of a weight by their numbers: those that stack matrices, those of a matrix's inputs and its outputs."""

    leading: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def of_a(self, axes: tuple, rank) -> tuple:
        """What belongs to A's axes, from what belongs to the weight's: its shape, or its axes' names."""
        return (*(axes[i] for i in self.leading + self.inputs), rank)

    def of_b(self, axes: tuple, rank) -> tuple:
        return (*(axes[i] for i in self.leading), rank, *(axes[i] for i in self.outputs))


def sides(path: str, names: tuple[str | None, ...]) -> Sides | None:
    """Of the weight at that path whose axes have these logical names; None where it is no matrix."""
    lead = len(list(itertools.takewhile(lambda name: name in LEADING, names)))
    groups: list[list[int]] = []
    for axis in range(lead, len(names)):
        # the parts of a head are no side of their own
        if names[axis] == "head_dim" and groups and names[axis - 1] in ("heads", "kv_heads"):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    if len(groups) != 2:
        return None
    inputs, outputs = map(tuple, groups)
    if path.rsplit("/", 1)[-1] == "unembedding":
        # (V, D), read from D to V
        inputs, outputs = outputs, inputs
    return Sides(tuple(range(lead)), inputs, outputs)


def is_table(path: str) -> bool:
    """Whether rows of the weight are looked up, and it is multiplied with nothing."""
    return path.rsplit("/", 1)[-1] in TABLES


def fresh(path: str, of: Sides, shape: tuple[int, ...], rank: int, key: jax.Array) -> dict[str, jax.Array]:
    """A and B whose product is 0, as PEFT draws them: A uniform within 1 / sqrt(inputs) and B 0; of a table A is 0 and
    B standard normal. Each path draws its own numbers from the key, whatever else is adapted."""
    key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    shape_a, shape_b = of.of_a(shape, rank), of.of_b(shape, rank)
    if is_table(path):
        return {A: jnp.zeros(shape_a), B: jax.random.normal(key, shape_b)}
    fan_in = 1
    for axis in of.inputs:
        fan_in *= shape[axis]
    bound = fan_in**-0.5
    return {A: jax.random.uniform(key, shape_a, minval=-bound, maxval=bound), B: jnp.zeros(shape_b)}


@partial(jax.jit, static_argnums=(0, 4))
def adapted(of: Sides, weight: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """weight + scale A B, in the weight's own axes."""
    stacked = tuple(range(len(of.leading)))
    over = (((a.ndim - 1,), (len(stacked),)), (stacked, stacked))
    product = jax.lax.dot_general(a, b, over, precision=jax.lax.Precision.HIGHEST)
    order = of.leading + of.inputs + of.outputs
    return weight + scale * product.transpose([order.index(axis) for axis in range(weight.ndim)])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapted:
    """A weight of a stack of blocks with its A and B, layers first, in the weight's place among the parameters: W + A B
    is made in the loop over the layers, where the whole stack of it and of its gradient never is."""

    weight: jax.Array
    a: jax.Array
    b: jax.Array
    of: Sides = field(metadata={"static": True})
    scale: float = field(metadata={"static": True})

    def layer(self) -> jax.Array:
        """The weight of one layer, where the loop has taken the first axis away."""
        # a product with a batch axis is one that no policy of `remat` keeps
        one = (x[None] for x in (self.weight, self.a, self.b))
        return adapted(self.of, *one, self.scale)[0]


def is_adapted(x) -> bool:
    return isinstance(x, Adapted)


def merged_layer(params):
    """The parameters of one block."""
    return jax.tree.map(lambda x: x.layer() if is_adapted(x) else x, params, is_leaf=is_adapted)
