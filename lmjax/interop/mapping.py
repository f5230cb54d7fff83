"""How a checkpoint's tensors and our parameters are the same numbers: one entry a tensor, read in both directions.

A pattern such as "(N H) D -> D N H" says: their array is the matrix of N H rows and D columns, ours has the axes D, N,
H. A number is an axis of so many parts, of which `part` is this one: "D (3 N H) -> D N H" is one third of GPT-2's
c_attn.
"""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lmjax.errors import UserError
from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Experts


@dataclass(frozen=True)
class Entry:
    """ours: the path of a parameter; under "blocks/" and "encoder/blocks/", one layer's. theirs: a name, with {layer}
    and {expert} where there is one for each. pattern, part: see above."""

    ours: str
    theirs: str
    pattern: str
    part: int = 0


@dataclass(frozen=True)
class Sizes:
    """The lengths of the axes that patterns name."""

    lengths: dict[str, int]

    def shape(self, pattern: str) -> tuple[int, ...]:
        """Of their array."""
        return tuple(math.prod(self.length(axis) for axis in group) for group in parse(pattern)[0])

    def length(self, axis: str) -> int:
        return int(axis) if axis.isdigit() else self.lengths[axis]

    def view(self, array: np.ndarray, entry: Entry) -> np.ndarray:
        """Their array as ours has it, on the same memory: to read from, and to write to."""
        groups, order = parse(entry.pattern)
        axes = [axis for group in groups for axis in group]
        x = array.reshape([self.length(axis) for axis in axes])
        parted = [i for i, axis in enumerate(axes) if axis.isdigit()]
        if parted:
            x = x[(slice(None),) * parted[0] + (entry.part,)]
            axes.pop(parted[0])
        return x.transpose([axes.index(axis) for axis in order])


@functools.cache
def parse(pattern: str) -> tuple[list[list[str]], list[str]]:
    """(groups of axes on the left, axes on the right)."""
    left, right = pattern.split("->")
    groups = [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\S+", left)]
    return groups, right.split()


def sizes(cfg: ModelConfig, vocab: int) -> Sizes:
    """vocab: of the checkpoint, which may be smaller than cfg.vocab."""
    lengths = {
        "V": vocab, "D": cfg.width, "N": cfg.heads, "K": cfg.n_kv_heads, "H": cfg.head_width, "F": cfg.hidden,
        "T": cfg.context, "G": cfg.heads // cfg.n_kv_heads, "O": cfg.width, "I": cfg.token_types,
        "P": cfg.context + getattr(cfg.positions, "offset", 0), "R": getattr(cfg.positions, "buckets", 0),
        "C": cfg.outputs,
    }  # fmt: skip
    if isinstance(cfg.feedforward, Experts):
        lengths["E"] = cfg.feedforward.count
    return Sizes(lengths)


def expand(entry: Entry, cfg: ModelConfig) -> Iterator[tuple[tuple[int, ...], str]]:
    """((layer and expert, as far as there are), the name of their tensor) for every tensor of an entry."""
    count = cfg.encoder_layers if entry.ours.startswith("encoder/") else cfg.layers
    layers = range(count) if "{layer}" in entry.theirs else [None]
    experts = range(cfg.feedforward.count) if "{expert}" in entry.theirs else [None]
    for layer in layers:
        for expert in experts:
            place = tuple(i for i in (layer, expert) if i is not None)
            yield place, entry.theirs.format(layer=layer, expert=expert)


def check_names(found: dict, entries: list[Entry], cfg: ModelConfig, lengths: Sizes, where: str) -> None:
    """Raises UserError for a tensor that is missing, too many, or of another shape, and names it."""
    expected = set()
    # names are made one by one: a configuration may ask for more than there is room for
    for entry in entries:
        shape = lengths.shape(entry.pattern)
        for _, name in expand(entry, cfg):
            if name not in found:
                raise UserError(f"{where}: {name} is missing")
            if found[name].shape != shape:
                raise UserError(f"{where}: {name} has the shape {found[name].shape}; config.json asks for {shape}")
            expected.add(name)
    for name in found:
        if name not in expected:
            raise UserError(f"{where}: {name} belongs to no part of the model that config.json describes")
