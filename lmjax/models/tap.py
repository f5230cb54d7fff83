"""Places inside a model that can be looked at and changed, by TransformerLens's names (github.com/TransformerLensOrg).

A place without a reader costs nothing: `tap` then adds no operation, and the jaxpr of a train step is the one that it
would be without it.
"""

import difflib
import re
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.errors import UserError

# what taps keep; of attention weights apart, since only the formula as it stands has them
TAPS, PATTERNS = "taps", "patterns"
# what taps change
PATCHES = "patches"
# our modules' names where TransformerLens has others
THEIRS = {
    "attention": "attn", "feedforward": "mlp", "attention_norm": "ln1", "feedforward_norm": "ln2",
    "cross_attention": "cross_attn", "cross_attention_norm": "ln_cross",
    "attention_post_norm": "ln1_post", "feedforward_post_norm": "ln2_post", "final_norm": "ln_final",
}  # fmt: skip
OURS = {theirs: ours for ours, theirs in THEIRS.items()}
# the attention weights of a layer and the scores under them
OF_PATTERNS = ("hook_attn_scores", "hook_pattern")
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


class Patch(NamedTuple):
    """What becomes of x at a site: `value` where `where` is True (None: everywhere; no value: nothing is replaced),
    then `added` on top. Each must broadcast to x."""

    value: jax.Array | None = None
    where: jax.Array | None = None
    added: jax.Array | None = None

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.value is not None:
            value = jnp.broadcast_to(jnp.asarray(self.value, x.dtype), x.shape)
            x = value if self.where is None else jnp.where(self.where, value, x)
        return x if self.added is None else x + jnp.asarray(self.added, x.dtype)


def tap(module: nn.Module, name: str, x: jax.Array, collection: str = TAPS) -> jax.Array:
    """x, or what a Patch for this site makes of it. Where the caller captures (`transformer.captured`), it is kept too;
    otherwise this adds nothing."""
    if module.has_variable(PATCHES, name):
        x = module.get_variable(PATCHES, name)(x)
    module.sow(collection, name, x, reduce_fn=lambda _, new: new, init_fn=lambda: None)
    return x


def shows_patterns(module: nn.Module) -> bool:
    """Whether somebody reads or changes the attention weights of this layer."""
    return module.is_mutable_collection(PATTERNS) or any(module.has_variable(PATCHES, name) for name in OF_PATTERNS)


def by_site(state: dict, prefix: str = "") -> dict[str, jax.Array]:
    """What the taps of a module kept, as {"attn.hook_q": x, ...}. state: as `Module.apply` gives it."""
    kept, patterns, sites = _flat(state.get(TAPS, {}), prefix), _flat(state.get(PATTERNS, {}), prefix), {}
    for name, x in kept.items():
        # what a head gives comes after its weights
        before = [name.replace("hook_z", of) for of in OF_PATTERNS] if name.endswith("hook_z") else []
        sites |= {of: patterns[of] for of in before if of in patterns} | {name: x}
    return sites


def _flat(tree: dict, prefix: str) -> dict[str, jax.Array]:
    sites = {}
    for name, item in tree.items():
        name = prefix + THEIRS.get(name, name)
        sites |= _flat(item, f"{name}.") if isinstance(item, dict) else {name: item}
    return sites


def nested(patches: dict[str, Patch]) -> dict:
    """{"attn.hook_q": patch} as the collection PATCHES of the module that has these sites."""
    tree = {}
    for site, patch in patches.items():
        *modules, name = site.split(".")
        inner = tree
        for module in modules:
            inner = inner.setdefault(OURS.get(module, module), {})
        inner[name] = patch
    return tree


def of_layers(patches: dict[str, Patch]) -> tuple[dict[str, Patch], dict[int, dict[str, Patch]]]:
    """(those outside the blocks, those of each block's number, named within it)."""
    outside, inside = {}, {}
    for site, patch in patches.items():
        if found := BLOCK.fullmatch(site):
            inside.setdefault(int(found[1]), {})[found[2]] = patch
        else:
            outside[site] = patch
    return outside, inside


def stacked(inside: dict[int, dict[str, Patch]], layers: int, shapes: dict[str, jax.ShapeDtypeStruct]) -> dict:
    """The collection PATCHES of scanned blocks: every leaf with a leading axis of length L, on layers without a patch
    one that changes nothing. shapes: of the sites within a block."""
    names = dict.fromkeys(name for patches in inside.values() for name in patches)
    return nested({name: _stack([inside.get(i, {}).get(name, Patch()) for i in range(layers)], shapes[name])
                   for name in names})  # fmt: skip


def _stack(patches: list[Patch], like: jax.ShapeDtypeStruct) -> Patch:
    def all_of(parts, dtype):
        # as large as the largest of them, with the axes of what stands there: many runs at one time have a mask each
        shape = jnp.broadcast_shapes((1,) * len(like.shape), *map(jnp.shape, parts))
        return jnp.stack([jnp.broadcast_to(jnp.asarray(part, dtype), shape) for part in parts])

    value = where = added = None
    if any(patch.value is not None for patch in patches):
        value = all_of([0 if patch.value is None else patch.value for patch in patches], like.dtype)
        everywhere = [True if patch.where is None else patch.where for patch in patches]
        where = all_of(
            [False if patch.value is None else w for patch, w in zip(patches, everywhere, strict=True)], bool
        )
    if any(patch.added is not None for patch in patches):
        added = all_of([0 if patch.added is None else patch.added for patch in patches], like.dtype)
    return Patch(value, where, added)


def check_sites(asked, known, what: str = "site") -> None:
    """Raises UserError for a name that the model does not have, with the nearest one that it has."""
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{what} {name!r}: the model has no such site{hint}")
