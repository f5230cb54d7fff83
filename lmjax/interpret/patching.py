"""Activation patching (arXiv:2202.05262, section 2; arXiv:2309.16042): a text is read again and again, each time with
one activation of another text, and what becomes of the answer says where in the model it is decided."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.batching import Text
from lmjax.errors import UserError
from lmjax.interpret.capture import LOGITS, Model, Read, forward
from lmjax.interpret.runs import Metric, pair, run_all
from lmjax.models.config import ModelConfig
from lmjax.models.tap import Patch, check_sites


class Kind(NamedTuple):
    """site: within a block. position, head: the axes of what stands there; None: it has no heads."""

    site: str
    position: int = 1
    head: int | None = None


# by TransformerLens's short names
KINDS = {name: Kind(f"hook_{name}") for name in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")}
KINDS |= {name: Kind(f"attn.hook_{name}", head=2) for name in ("q", "k", "v", "z")}
KINDS |= {"pattern": Kind("attn.hook_pattern", position=2, head=1)}


@dataclass(frozen=True)
class LogitDifference:
    """The logit of token `target` less that of `against`, at a position of every row, mean over rows. A call raises
    UserError for a position or a token that there is not."""

    target: int
    against: int
    position: int = -1

    def __call__(self, logits_BTV: jax.Array) -> jax.Array:
        _, T, V = logits_BTV.shape
        # JAX would take the nearest that there is
        for name, number, least, size in (("position", self.position, -T, T), ("target", self.target, 0, V),
                                          ("against", self.against, 0, V)):  # fmt: skip
            if not least <= number < size:
                raise UserError(f"LogitDifference: {name} is {number}; expected {least} to {size - 1}")
        logits_BV = logits_BTV[:, self.position]
        return (logits_BV[:, self.target] - logits_BV[:, self.against]).mean()


def kind_of(name: str) -> Kind:
    """Raises UserError for one that there is not, with the nearest that there is."""
    check_sites([name], KINDS, "kind")
    return KINDS[name]


def names_of(cfg: ModelConfig, kind: Kind) -> tuple[str, ...]:
    """Its site in each layer. Raises UserError where the model has none."""
    if cfg.parallel and kind.site == "hook_resid_mid":
        raise UserError("kind 'resid_mid': attention and feed-forward of this model read the same; it has no such site")
    return tuple(f"blocks.{i}.{kind.site}" for i in range(cfg.layers))


def activation_patching(
    model: Model, clean: Text | jax.Array | Read, corrupt: Text | jax.Array | Read, metric: Metric, *,
    kind: str = "resid_pre", positions: bool = True, scaled: bool = True, chunk: int | None = None,
    say: Callable[[str], None] = print,
) -> jax.Array:  # fmt: skip
    """The metric of the corrupt text's run where one activation is the clean run's, for each of them: (L, T), of kinds
    with heads (L, T, N); without positions all of a layer's (a head's) are patched at once: (L,) or (L, N).

    clean, corrupt: as `capture` reads them, of equally many tokens. metric: from logits (B, T, V) to a number, such as
    `LogitDifference`. kind: of KINDS. scaled: 0 is the corrupt run's metric and 1 the clean one's; else as it is.
    chunk: runs that are computed at one time; None: as many as fit. say: is told the number of runs, the time and the
    memory before they begin. Raises UserError for another kind, texts of unequal length, a metric that does not
    differ, and as `capture`.
    """
    cfg, of = model.cfg, kind_of(kind)
    names = names_of(cfg, of)
    both = pair(model, clean, corrupt, metric, names)
    values = [both.clean[name] for name in names]
    T = values[0].shape[of.position]
    N = 1 if of.head is None else values[0].shape[of.head]
    sizes = (cfg.layers, T if positions else 1, N)

    def one(arguments, index):
        params, rows, values = arguments
        where_L = masks(of, values[0].ndim, sizes, T, jnp.unravel_index(index, sizes), positions)
        return metric(patched(cfg, params, rows, names, values, where_L))

    told = f"activation patching of {kind}: {cfg.layers} layers"
    told += f" x {T} positions" * positions + f" x {N} heads" * (of.head is not None)
    found = run_all(
        told, one, (both.params, both.rows, values), sizes[0] * sizes[1] * sizes[2], model=model, rows=both.rows,
        seconds=both.seconds, chunk=chunk, say=say,
    )  # fmt: skip
    found_LTN = (both.scaled(found) if scaled else found).reshape(sizes)
    gone = ([] if positions else [1]) + ([2] if of.head is None else [])
    return found_LTN.squeeze(tuple(gone))


def masks(of: Kind, axes: int, sizes: tuple[int, ...], T: int, place: tuple, positions: bool) -> jax.Array:
    """(L, ...): where the activation at that layer, position and head stands; the dots broadcast to what stands at a
    site, which has so many axes."""
    layer, position, head = place

    def hot(axis, number, size):
        shape = [1] * (axes + 1)
        shape[axis] = size
        return (jnp.arange(size) == number).reshape(shape)

    where = hot(0, layer, sizes[0])
    if positions:
        where = where & hot(1 + of.position, position, T)
    return where if of.head is None else where & hot(1 + of.head, head, sizes[2])


def patched(cfg: ModelConfig, params, rows: Read, names: tuple[str, ...], values, where_L) -> jax.Array:
    """The logits with these values at these sites, where `where_L` says so."""
    patches = {name: Patch(*one) for name, *one in zip(names, values, where_L, strict=True)}
    return forward(cfg, params, rows, (LOGITS,), patches)[LOGITS]
