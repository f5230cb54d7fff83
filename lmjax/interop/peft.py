"""PEFT's directories of a LoRA (huggingface.co/docs/peft): adapter_config.json and adapter_model.safetensors, out of a
run's adapter and onto a base.

PEFT's A is (rank, inputs), its B (outputs, rank), for a module that may hold several of our weights, as GPT-2's c_attn
does. Then the ranks are added up: each weight has its own rows of B and its own columns, and elsewhere there are zeros.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lmjax import trained
from lmjax.errors import UserError, path_text
from lmjax.interop.config_json import ADAPTER_FILE as CONFIG
from lmjax.interop.config_json import ConfigJson, read_config
from lmjax.interop.families import family_for
from lmjax.interop.mapping import Entry, Sizes, expand, parse, sizes
from lmjax.interop.read import Checkpoint
from lmjax.interop.tensor_files import ADAPTER as TENSORS
from lmjax.interop.tensor_files import beside, write_tensors
from lmjax.interop.write import SHARD_LIMIT, in_place_of_empty, require_empty
from lmjax.models import lora
from lmjax.models.feedforward import Experts
from lmjax.models.lora import Sides
from lmjax.trees import map_named, named_leaves

PREFIX = "base_model.model."
# ways to draw A and B after which the base is what it was
BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal")
ENDS = (".lora_A.weight", ".lora_B.weight")

# what else an adapter may be, with what stands there where it is not
NOTHING_ELSE = {
    "bias": "none", "use_dora": False, "lora_bias": False, "modules_to_save": [], "layer_replication": [],
    "alora_invocation_tokens": [],
}  # fmt: skip


@dataclass(frozen=True)
class Groups:
    """The axes of a tensor of theirs by name, as they lie: those of the module's inputs, and of its outputs, of which
    ours may be one part. inputs_first: whether the tensor is (inputs, outputs), as GPT-2's are."""

    inputs: list[str]
    outputs: list[str]
    inputs_first: bool


def groups_of(entry: Entry, of: Sides) -> Groups:
    """of: the sides of our weight."""
    (first, second), order = parse(entry.pattern)
    ours = {order[axis - len(of.leading)] for axis in of.inputs}
    return Groups(first, second, True) if ours == set(first) else Groups(second, first, False)


def export_adapter(experiment, params: dict, directory: Path, base: str) -> None:
    """Write what a run with an adapter has trained; PEFT puts it on the model that it finds by the name `base`. Raises
    UserError for what these files cannot say."""
    require_empty(directory)
    adapter, which = experiment.adapter, trained.parts(experiment)
    if which.trained:
        raise UserError(
            f"--adapter: PEFT's files hold A and B alone, and {min(which.trained)} is trained itself; without "
            "--adapter all is merged"
        )
    if not experiment.model.causal or experiment.model.encoder_layers or experiment.model.outputs:
        raise UserError(
            "--adapter: PEFT's files are written of models of the next token that have one stack of layers; without "
            "--adapter all is merged"
        )
    family, said = family_for(experiment.model)
    modules: dict[str, list[tuple[Entry, tuple, str]]] = {}
    for entry in family.all_entries(said):
        path = entry.ours if entry.ours in which.adapted else family.stands_in.get(entry.ours)
        if path in which.adapted:
            _check(path, experiment.model)
            for place, name in expand(entry, said):
                modules.setdefault(name, []).append((entry, place, path))
    lengths, leaves = sizes(said, said.vocab), dict(named_leaves(params))
    tensors, ranks = [], {}
    for name, pieces in modules.items():
        module = family.exported(name).removesuffix(".weight")
        a, b = _theirs(pieces, leaves, which.adapted, lengths)
        for end, array in zip(ENDS, (a, b), strict=True):
            tensors.append((PREFIX + module + end, array.dtype, array.shape, lambda array=array: array))
        ranks[pieces[0][0].theirs.split("{layer}.")[-1].removesuffix(".weight")] = len(a)
    wide = {module: rank for module, rank in ranks.items() if rank != adapter.rank}
    entry, _, path = next(iter(modules.values()))[0]
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": adapter.rank,
        "lora_alpha": adapter.alpha, "target_modules": sorted(ranks), "rank_pattern": wide,
        "alpha_pattern": {module: adapter.scale * rank for module, rank in wide.items()},
        "fan_in_fan_out": groups_of(entry, which.adapted[path]).inputs_first, "bias": "none", "lora_dropout": 0.0,
        "modules_to_save": None, "inference_mode": True,
    }  # fmt: skip
    with in_place_of_empty(directory) as scratch:
        write_tensors(scratch, tensors, SHARD_LIMIT, TENSORS)
        (scratch / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _check(path: str, cfg) -> None:
    """Raises UserError for a weight that is no module of theirs which PEFT adapts as we do."""
    if lora.is_table(path):
        also = " and its transpose, the unembedding," if cfg.tied and path == "embedding" else ""
        raise UserError(f"--adapter: PEFT cannot say the adapter of {path}{also}; without --adapter all is merged")
    if isinstance(cfg.feedforward, Experts) and "/feedforward/" in path:
        raise UserError(f"--adapter: PEFT cannot say the adapter of {path}, experts; without --adapter all is merged")


def _theirs(pieces: list, leaves: dict, adapted: dict[str, Sides], lengths: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """A and B of one module."""
    parts = [(entry, adapted[path], *_factors(leaves, path, place)) for entry, place, path in pieces]
    rank = parts[0][2].shape[-1]
    shape = [lengths.length(axis) for axis in groups_of(*parts[0][:2]).outputs]
    a_theirs, b_theirs = [], np.zeros((*shape, rank * len(parts)), np.float32)
    for i, (entry, of, a, b) in enumerate(parts):
        groups, order = groups_of(entry, of), parse(entry.pattern)[1]
        lead = len(of.leading)
        inputs, outputs = ([order[axis - lead] for axis in axes] for axes in (of.inputs, of.outputs))
        a = a.transpose([*(inputs.index(axis) for axis in groups.inputs), len(inputs)])
        a_theirs.append(a.reshape(-1, rank).T)
        own = [axis for axis in groups.outputs if not axis.isdigit()]
        b = b.transpose([*(1 + outputs.index(axis) for axis in own), 0])
        place = tuple(entry.part if axis.isdigit() else slice(None) for axis in groups.outputs)
        b_theirs[(*place, slice(i * rank, (i + 1) * rank))] = b
    return np.concatenate(a_theirs), b_theirs.reshape(-1, b_theirs.shape[-1])


def _factors(leaves: dict, path: str, place: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.asarray(leaves[f"{path}/{name}"][place]) for name in (lora.A, lora.B))


def base_of(directory: Path) -> str:
    """The directory of the model that PEFT's belongs to. Raises UserError where it names none that is here."""
    config = read_config(directory, CONFIG)
    name = config.text("base_model_name_or_path", "")
    for found in (Path(name), directory / name) if name else ():
        if found.is_dir() and found.resolve() != directory.resolve():
            return str(found)
    raise UserError(
        f"{config.where}: base_model_name_or_path is {name!r}; expected another directory, of its base model"
    )


def merged(directory: Path, base: Checkpoint, params: dict) -> dict:
    """The base's parameters, layers stacked, with the adapter's products added. Raises UserError where the directory
    holds something else than A and B of modules of the base."""
    entries = {}
    for entry in base.family.all_entries(base.cfg):
        for place, name in expand(entry, base.cfg):
            entries.setdefault(name, []).append((entry, place))
    names, deltas = trained.axes(base.cfg), {}
    shapes = {path: leaf.shape for path, leaf in named_leaves(params)}
    for module, product in _products(directory):
        name = base.family.canonical(f"{module}.weight")
        of = [lora.sides(entry.ours, names[entry.ours]) for entry, _ in entries.get(name, [])]
        if not of or None in of:
            raise UserError(f"{path_text(directory)}: {module} is no matrix of its base, {path_text(base.directory)}")
        for (entry, place), sides in zip(entries[name], of, strict=True):
            theirs = product.T if groups_of(entry, sides).inputs_first else product
            if theirs.shape != base.sizes.shape(entry.pattern):
                raise UserError(f"{path_text(directory)}: {module} has another shape in {path_text(base.directory)}")
            delta = deltas.setdefault(entry.ours, np.zeros(shapes[entry.ours], np.float32))
            delta[place] += base.sizes.view(theirs, entry)
    return map_named(lambda path, x: x + jnp.asarray(deltas[path]) if path in deltas else x, params)


def _products(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(module, scale x B A) for each, (outputs, inputs)."""
    config = read_config(directory, CONFIG)
    config.only("peft_type", "LORA")
    for field, value in NOTHING_ELSE.items():
        config.only(field, value)
    # the others take their product from the base before training, which has other weights then
    if config.has("init_lora_weights") and config.values["init_lora_weights"] not in BEGINNINGS:
        raise UserError(
            f"{config.where}: init_lora_weights is {config.values['init_lora_weights']!r}; expected one of "
            f"{', '.join(map(repr, BEGINNINGS))} (PEFT converts others: path_initial_model_for_weight_conversion)"
        )
    found = beside(directory / TENSORS, directory).tensors
    # of an adapted unembedding PEFT adds a copy of the base's own
    tensors = {name.removeprefix(PREFIX): x for name, x in found.items() if not name.endswith(".base_layer.weight")}
    for name in tensors:
        if not name.endswith(ENDS):
            raise UserError(f"{path_text(directory / TENSORS)}: {name} is neither A nor B of a matrix")
    for module in sorted({re.sub(r"\.lora_[AB]\.weight$", "", name) for name in tensors}):
        pair = [tensors.get(module + end) for end in ENDS]
        if None in pair or pair[0].shape[:1] != pair[1].shape[1:]:
            raise UserError(f"{path_text(directory / TENSORS)}: {module} has no A and B that fit together")
        a, b = (tensor.view().astype(np.float32) for tensor in pair)
        yield module, np.float32(_scale(config, module, len(a))) * (b @ a)


def _scale(config: ConfigJson, module: str, rank: int) -> float:
    alphas = config.part("alpha_pattern")
    for name in alphas.values:
        if not re.fullmatch(r"[\w.]+", name):
            raise UserError(f"{config.where}: alpha_pattern has {name!r}; expected plain names of modules")
    found = next((name for name in alphas.values if f".{module}".endswith(f".{name}")), None)
    alpha = config.number("lora_alpha", 8.0) if found is None else alphas.number(found)
    return alpha / (rank**0.5 if config.flag("use_rslora", False) else rank)
