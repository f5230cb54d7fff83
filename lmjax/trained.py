"""Which parameters training changes: all of them, those that `freeze` leaves, an adapter's, or an autoencoder's.

The model is put together from these, `trained`, and from the frozen ones. Both are trees with the model's own paths;
under the path of a weight that is adapted `trained` has A and B.
"""

import difflib
import fnmatch
import functools
from dataclasses import dataclass, replace

import jax

from lmjax.errors import UserError
from lmjax.models import lora
from lmjax.models.config import ModelConfig
from lmjax.models.lora import LoRA
from lmjax.models.transformer import abstract_params, param_names
from lmjax.trees import count, map_named, named_leaves, nested

# where what is adapted is summed up a layer at a time
IN_LOOPS = ("blocks/", "encoder/blocks/")


@dataclass(frozen=True)
class Parts:
    """Paths of the model. trained: of what is trained itself. adapted: of frozen weights that have an A and a B."""

    trained: frozenset[str]
    adapted: dict[str, lora.Sides]


def parts(experiment) -> Parts:
    """Raises UserError for a pattern that means nothing here, and where nothing would be trained."""
    # paths and axes do not depend on the vocabulary, which may not be known yet
    cfg = replace(experiment.model, vocab=experiment.model.vocab or 1)
    return _parts(cfg, experiment.freeze, experiment.adapter)


@functools.cache
def _parts(cfg: ModelConfig, freeze: tuple[str, ...], adapter: LoRA | None) -> Parts:
    names = axes(cfg)
    if cfg.autoencoder is not None:
        if freeze or adapter:
            raise UserError("model.autoencoder: nothing else is trained; expected no freeze and no adapter")
        return Parts(frozenset(path for path in names if path.startswith("autoencoder/")), {})
    if adapter is None:
        trained = frozenset(names) - matched("freeze", freeze, names)
        if not trained:
            raise UserError(f"freeze: {', '.join(freeze)} leaves no parameter to train")
        return Parts(trained, {})
    trained = frozenset(matched("adapter.train", adapter.train, names))
    adapted = {}
    for path in sorted(matched("adapter.weights", adapter.weights, names)):
        of = lora.sides(path, names[path])
        if of is None:
            raise UserError(f"adapter.weights: {path} is no matrix; adapter.train trains it as it is")
        if path in trained:
            raise UserError(f"adapter: {path} is in weights and in train; expected one of them")
        adapted[path] = of
    return Parts(trained, adapted)


def axes(cfg: ModelConfig) -> dict[str, tuple[str | None, ...]]:
    """The logical names of every parameter's axes, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(param_names(cfg), is_leaf=lambda x: isinstance(x, tuple))
    return {path: names for (path, _), (_, names) in zip(named_leaves(abstract_params(cfg)), leaves, strict=True)}


def matched(field: str, patterns: tuple[str, ...], paths) -> set[str]:
    """The paths that any of the patterns fits; * stands for any text, slashes too. Raises UserError for a pattern that
    fits none."""
    found = set()
    for pattern in patterns:
        fits = set(fnmatch.filter(paths, pattern))
        if not fits:
            near = sorted(paths, key=lambda path: -difflib.SequenceMatcher(None, pattern, path).ratio())[:3]
            raise UserError(f"{field}: {pattern!r} fits no parameter; the nearest are {', '.join(near)}")
        found |= fits
    return found


def parted(experiment, leaves: dict) -> tuple[dict, dict]:
    """What belongs to the paths of the model, as (that of the trained ones, that of the others)."""
    which = parts(experiment).trained
    ours = {path: leaf for path, leaf in leaves.items() if path in which}
    return ours, {path: leaf for path, leaf in leaves.items() if path not in which}


def split(experiment, params: dict) -> tuple[dict, dict]:
    """(trained, frozen) of the parameters that training starts with; an adapter's A and B are drawn from the seed."""
    leaves = dict(named_leaves(params))
    ours, frozen = parted(experiment, leaves)
    # another stream than that of the parameters and those of the steps
    key = jax.random.split(jax.random.key(experiment.seed))[1]
    for path, of in parts(experiment).adapted.items():
        factors = lora.fresh(path, of, leaves[path].shape, experiment.adapter.rank, key)
        ours |= {f"{path}/{name}": leaf for name, leaf in factors.items()}
    return nested(ours), nested(frozen)


def axis_names(experiment) -> tuple[dict, dict]:
    """(trained, frozen): the logical names of the axes of every leaf."""
    names = axes(experiment.model)
    ours, frozen = parted(experiment, names)
    for path, of in parts(experiment).adapted.items():
        ours[f"{path}/{lora.A}"] = of.of_a(names[path], None)
        ours[f"{path}/{lora.B}"] = of.of_b(names[path], None)
    return nested(ours), nested(frozen)


def whole(experiment, trained: dict, frozen: dict, *, in_training: bool = False) -> dict:
    """The model's parameters. frozen: may hold more than the frozen ones; what is trained goes before. in_training:
    with the adapted weights of blocks as `lora.Adapted`, which the loop over the layers sums up."""
    which = parts(experiment)
    leaves = dict(named_leaves(frozen)) | dict(named_leaves(trained))

    def leaf(path, _):
        if path not in which.adapted:
            return leaves[path]
        of, scale = which.adapted[path], experiment.adapter.scale
        pair = leaves[path], leaves[f"{path}/{lora.A}"], leaves[f"{path}/{lora.B}"]
        in_a_loop = in_training and path.startswith(IN_LOOPS)
        return lora.Adapted(*pair, of, scale) if in_a_loop else lora.adapted(of, *pair, scale)

    return map_named(leaf, abstract_params(experiment.model))


def stored(experiment, trained: dict, frozen: dict) -> dict:
    """What a checkpoint holds: of an adapter what is trained, else the whole model, so that a run needs nothing beside
    itself."""
    return trained if experiment.adapter is not None else whole(experiment, trained, frozen)


def of_stored(experiment, kept: dict) -> tuple[dict, dict]:
    """(trained, frozen) of what `stored` gave; of an adapter nothing that is frozen."""
    if experiment.adapter is not None:
        return kept, {}
    ours, frozen = parted(experiment, dict(named_leaves(kept)))
    return nested(ours), nested(frozen)


def told(experiment, trained: dict) -> list[str]:
    """What is trained, in a few words; empty where that is all."""
    if experiment.adapter is None and not experiment.freeze and not experiment.model.autoencoder:
        return []
    number, total = count(trained), count(abstract_params(experiment.model))
    how = "frozen ones apart"
    if adapter := experiment.adapter:
        how = f"LoRA of rank {adapter.rank} on {len(parts(experiment).adapted)} weights"
    return [f"trained {number:,} parameters, {number / total:.2%} of the model's {total:,} ({how})"]
