"""From a Hugging Face checkpoint directory to our parameters, tensor by tensor, onto any mesh.

One tensor at a time becomes an array on the devices; where ours has several of theirs on a leading axis, each is
written into its place of one array that is given on from write to write. So little more is in memory than the
parameters.
"""

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lmjax import hosts, sharding
from lmjax.errors import UserError, path_text
from lmjax.interop.config_json import ADAPTER_FILE, ConfigJson, read_config
from lmjax.interop.families import family_of
from lmjax.interop.family import Family
from lmjax.interop.labels import labels_of
from lmjax.interop.mapping import Entry, Sizes, check_names, expand, sizes
from lmjax.interop.tensor_files import Tensor, has_tensors, open_tensors
from lmjax.models.config import ModelConfig
from lmjax.models.transformer import abstract_params, param_names
from lmjax.trees import map_named


@dataclass(frozen=True)
class Checkpoint:
    """A directory whose config.json and tensors fit together; no tensor has been read yet. tensors: by the family's
    name. notes: what a user should know of how it was read. start: the id that the decoder of an encoder-decoder
    begins with. labels: of a model that labels texts, their names."""

    directory: Path
    family: Family
    cfg: ModelConfig
    tensors: dict[str, Tensor]
    notes: list[str]
    start: int | None = None
    labels: tuple[str, ...] | None = None

    @property
    def sizes(self) -> Sizes:
        return sizes(self.cfg, self.cfg.vocab)


def open_checkpoint(directory: Path) -> Checkpoint:
    """Raises UserError, naming the field or the tensor, where something is missing, too many or does not fit."""
    if (directory / ADAPTER_FILE).is_file() and has_tensors(directory):
        raise UserError(
            f"{path_text(directory)}: a model and an adapter ({ADAPTER_FILE}) lie together; expected the adapter in a "
            "directory of its own, or none"
        )
    config = read_config(directory)
    family = family_of(config)
    try:
        cfg = family.read(config)
    except ValueError as error:
        raise UserError(f"{config.where}: {error}") from None
    notes = ["auto_map is ignored: no code of a checkpoint is run"] if config.has("auto_map") else []
    tensors = _canonical(family, open_tensors(directory), directory)
    _drop_copies(family, tensors, directory)
    cfg = family.with_parts(cfg, lambda _, tensor: tensor in tensors)
    labels = labels_of(config, family.labels, tensors)
    if labels is None:
        cfg, note = _output_embedding(family, cfg, tensors)
    else:
        cfg, note = family.labelling(cfg, len(labels)), _drop_other_heads(family, tensors)
    notes += [note] if note else []
    start = _start(config, cfg.vocab) if cfg.encoder_layers else None
    checkpoint = Checkpoint(directory, family, cfg, tensors, notes, start, labels)
    check_names(tensors, family.all_entries(cfg), cfg, checkpoint.sizes, path_text(directory))
    return checkpoint


def _canonical(family: Family, tensors: dict[str, Tensor], directory: Path) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        canonical = family.canonical(name)
        # transformers 5 calls every head lm_head, older files of GPT-NeoX embed_out
        canonical = family.head if canonical == "lm_head.weight" else canonical
        if canonical is None:
            continue
        if canonical in found:
            raise UserError(f"{path_text(directory)}: {name} and {found[canonical].name} are the same tensor")
        if tensor.dtype not in (np.float32, np.float16, jnp.bfloat16):
            raise UserError(f"{path_text(directory)}: {name} is {tensor.dtype}; expected float32, float16 or bfloat16")
        found[canonical] = tensor
    return found


def _drop_copies(family: Family, tensors: dict[str, Tensor], directory: Path) -> None:
    """What is the embedding once more takes its place or goes. Raises UserError where it is another matrix."""
    for name in family.copies:
        copy = tensors.pop(name, None)
        if copy is None:
            continue
        own = tensors.setdefault(family.embedding, copy)
        if own is not copy and (own.shape != copy.shape or not _equal(own, copy)):
            raise UserError(f"{path_text(directory)}: {name} differs from the embedding, {own.name}")


def _drop_other_heads(family: Family, tensors: dict[str, Tensor]) -> str | None:
    """What predicts tokens, and a pooler that is not before the labels, have no use beside labels."""
    others = (family.head, *family.heads, "pooler.")
    own = () if family.labels.pooler is None else (f"{family.labels.pooler}.",)
    dropped = [tensors.pop(name).name for name in list(tensors) if name.startswith(others) and not name.startswith(own)]
    return f"not read, since the model labels texts: {', '.join(dropped)}" if dropped else None


def _start(config: ConfigJson, vocab: int) -> int:
    """As transformers: decoder_start_token_id, or where there is none the padding's id."""
    name = "decoder_start_token_id" if config.has("decoder_start_token_id") else "pad_token_id"
    start = config.number(name, 0)
    if start not in range(vocab):
        raise UserError(f"{config.where}: {name} is {start:g}; expected an id below {vocab}")
    return int(start)


def _output_embedding(family: Family, cfg: ModelConfig, tensors: dict[str, Tensor]) -> tuple[ModelConfig, str | None]:
    """As transformers 5: config.json's word counts where the file does not say otherwise. A head that is the
    embedding again is dropped, one that differs from it is kept."""
    embedding, head = tensors.get(family.embedding), tensors.get(family.head)
    if not cfg.tied or head is None:
        return cfg, None
    if embedding is None:
        tensors[family.embedding] = tensors.pop(family.head)
    elif embedding.shape == head.shape and _equal(embedding, head):
        del tensors[family.head]
    else:
        return replace(
            cfg, tied=False
        ), f"{head.name} differs from {embedding.name}: used, although config.json ties them"
    return cfg, None


def _equal(one: Tensor, other: Tensor) -> bool:
    """Row blocks at a time: a vocabulary's matrix is large."""
    a, b = one.view(), other.view()
    return all(np.array_equal(a[i : i + 4096], b[i : i + 4096]) for i in range(0, len(a), 4096))


def load_params(
    checkpoint: Checkpoint, *, stacked: bool, mesh: jax.sharding.Mesh | None = None, dtype=jnp.float32,
    vocab: int | None = None,
) -> dict:  # fmt: skip
    """The parameters, with their layers stacked or apart (`transformer.apart`). mesh: laid out as training does;
    None: one device. vocab: with rows of zeros up to so many. Nothing is read twice."""
    cfg = replace(checkpoint.cfg, vocab=vocab or checkpoint.cfg.vocab)
    by_path: dict[str, list[Entry]] = {}
    for entry in checkpoint.family.all_entries(cfg):
        by_path.setdefault(entry.ours, []).append(entry)
    abstract, names = abstract_params(cfg), param_names(cfg)
    if not stacked:
        abstract, names = _apart(cfg, abstract, names)
    # several processes must send off their programs in one order
    with ThreadPoolExecutor(2 if hosts.count() == 1 else 1) as pool:

        def start(path, shape, axes):
            pieces = _pieces(checkpoint, by_path, path)
            return pool.submit(_array, shape.shape, dtype, sharding.placement(mesh, axes, shape.shape), pieces)

        paths = map_named(lambda path, _: path, abstract)
        futures = jax.tree.map(start, paths, abstract, names, is_leaf=lambda x: isinstance(x, str))
        return jax.tree.map(lambda future: future.result(), futures)


def _apart(cfg: ModelConfig, abstract: dict, names: dict) -> tuple[dict, dict]:
    if cfg.encoder_layers:
        encoder, axes = _apart(cfg.encoder, abstract["encoder"], names["encoder"])
        abstract, names = abstract | {"encoder": encoder}, names | {"encoder": axes}
    layer = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), abstract["blocks"])
    axes = jax.tree.map(lambda x: x[1:], names["blocks"], is_leaf=lambda x: isinstance(x, tuple))
    return abstract | {"blocks": (layer,) * cfg.layers}, names | {"blocks": (axes,) * cfg.layers}


def _pieces(checkpoint: Checkpoint, by_path: dict, path: str) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """(place on the leading axes, view of the file) of all that a parameter consists of."""
    parts, layer = path.split("/"), None
    at = 1 + parts.index("blocks") if "blocks" in parts else 0
    if at and parts[at].isdigit():
        layer = int(parts.pop(at))
    (entry,) = by_path["/".join(parts)]
    return [
        (place if layer is None else place[1:], checkpoint.sizes.view(checkpoint.tensors[name].view(), entry))
        for place, name in expand(entry, checkpoint.cfg)
        if layer is None or place[0] == layer
    ]


def _array(shape: tuple[int, ...], dtype, where: jax.sharding.Sharding, pieces) -> jax.Array:
    if len(pieces) == 1 and not pieces[0][0] and pieces[0][1].shape == shape:
        return _placed(pieces[0][1], dtype, where)
    whole = _zeros(shape, dtype, where)()
    for place, view in pieces:
        begin = (*place, *(0 for _ in view.shape))
        part = view.reshape((1,) * len(place) + view.shape)
        whole = _written(whole, _placed(part, dtype, _one_piece(where, len(place))), jnp.array(begin, jnp.int32))
        # the copy on its way is let go before the next one is made
        jax.block_until_ready(whole)
    return whole


@functools.cache
def _zeros(shape: tuple[int, ...], dtype, where: jax.sharding.Sharding):
    """A program, compiled once: () -> zeros that lie there."""
    return jax.jit(partial(jnp.zeros, shape, dtype), out_shardings=where)


@partial(jax.jit, donate_argnums=0)
def _written(whole, part, begin):
    return jax.lax.dynamic_update_slice(whole, part, tuple(begin))


def _one_piece(where: jax.sharding.Sharding, leading: int) -> jax.sharding.Sharding:
    """Where a piece lies whose `leading` axes are of length 1: on the devices that its numbers are for."""
    if not isinstance(where, NamedSharding):
        return where
    return NamedSharding(where.mesh, PartitionSpec(*(None,) * leading, *where.spec[leading:]))


def _placed(view: np.ndarray, dtype, where: jax.sharding.Sharding) -> jax.Array:
    """A copy of a view on the devices, each with its own part. Never the mapped file itself, which may change."""

    def part(index):
        x = view[index]
        if x.dtype == dtype and not x.flags.c_contiguous:
            return x  # JAX transposes faster than NumPy, and copies
        own = _aligned(x.shape, np.dtype(dtype))
        own[...] = x
        return own

    return jax.block_until_ready(jax.make_array_from_callback(view.shape, where, part))


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that begins where JAX wants it on a CPU, so that it is taken over and not copied once more."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)
