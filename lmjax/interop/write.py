"""From our parameters to a Hugging Face checkpoint directory that transformers loads as it is."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.cache import built_whole
from lmjax.errors import UserError, path_text
from lmjax.interop.families import family_for
from lmjax.interop.family import Family
from lmjax.interop.labels import labels_json
from lmjax.interop.mapping import Entry, expand, sizes
from lmjax.interop.tensor_files import write_tensors
from lmjax.interop.tokenizer_export import hugging_face_files, roles
from lmjax.models.config import ModelConfig
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.chat import stops_of
from lmjax.trees import named_leaves

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16), "float16": np.dtype(np.float16)}
SHARD_LIMIT = 5_000_000_000


def export(
    cfg: ModelConfig, params: dict, tokenizer: Tokenizer | None, directory: Path, *, dtype: str = "float32",
    shard_limit: int = SHARD_LIMIT, start: int | None = None, labels: tuple[str, ...] | None = None,
) -> Family:  # fmt: skip
    """Write config.json, safetensors and the tokenizer's files; the family that was found to say this model. A
    vocabulary that was filled up is cut to the tokenizer's. dtype: other than float32 rounds to nearest even.
    start: the id that the decoder of an encoder-decoder begins with; None: 0. labels: what the model's outputs are
    (`labels.written`); None: it has none.

    Raises UserError where no family says the model, float16 has no room for a number, or the directory is not empty;
    nothing is left half-written.
    """
    require_empty(directory)
    assert cfg.outputs == len(labels or ()), (cfg.outputs, labels)
    family, said = family_for(cfg)
    vocab = cfg.vocab if tokenizer is None else tokenizer.vocab_size
    lengths = sizes(said, vocab)
    leaves = dict(named_leaves(params))
    by_name: dict[str, list[tuple[Entry, tuple[int, ...]]]] = {}
    for entry in family.all_entries(said):
        for place, name in expand(entry, said):
            by_name.setdefault(name, []).append((entry, place))

    def array_of(name, shape):
        theirs = np.zeros(shape, DTYPES[dtype])
        for entry, place in by_name[name]:
            ours = _leaf(leaves, entry.ours, place)
            if ours is None and entry.ours in family.stands_in:
                ours = _leaf(leaves, family.stands_in[entry.ours], place)
            assert ours is not None or entry.ours.endswith("/bias"), entry.ours
            if ours is not None:
                view = lengths.view(theirs, entry)
                with np.errstate(over="ignore"):
                    view[...] = ours[: view.shape[0]] if entry.pattern.startswith("V ") else ours
        if dtype == "float16" and np.isinf(theirs).any():
            raise UserError(
                f"--dtype float16: {name} has numbers above 65,504, its largest; bfloat16 has room for them"
            )
        return theirs

    tensors = []
    for name, entries in by_name.items():
        shape = lengths.shape(entries[0][0].pattern)
        tensors.append(
            (family.exported(name), DTYPES[dtype], shape, lambda name=name, shape=shape: array_of(name, shape))
        )
    with in_place_of_empty(directory) as scratch:
        write_tensors(scratch, tensors, shard_limit)
        for name, content in _texts(family, said, tokenizer, vocab, dtype, start or 0, labels).items():
            (scratch / name).write_bytes(content)
    return family


def require_empty(directory: Path) -> None:
    """Raises UserError where a directory cannot be written."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"--to {path_text(directory)}: exists and is not an empty directory")


@contextmanager
def in_place_of_empty(directory: Path) -> Iterator[Path]:
    """A directory to fill, which then is that one, whole."""
    if directory.is_dir():
        directory.rmdir()
    with built_whole(directory) as scratch:
        yield scratch
        scratch.chmod(0o755)


def _leaf(leaves: dict[str, jax.Array], path: str, place: tuple[int, ...]) -> np.ndarray | None:
    """One layer's part of a parameter, stacked or apart; None where we have no such parameter."""
    if path in leaves:
        return np.asarray(leaves[path][place] if place else leaves[path])
    if place and (apart := path.replace("blocks/", f"blocks/{place[0]}/", 1)) in leaves:
        return np.asarray(leaves[apart][place[1:]] if place[1:] else leaves[apart])
    return None


def _texts(
    family: Family, cfg: ModelConfig, tokenizer: Tokenizer | None, vocab: int, dtype: str, start: int,
    labels: tuple[str, ...] | None,
) -> dict[str, bytes]:  # fmt: skip
    ids = {"bos_token_id": None, "eos_token_id": None}
    if tokenizer is not None:
        # who generates with the files must know where an answer ends
        spoken = tokenizer.chat is not None and not tokenizer.policy.stops
        stops = list(stops_of(tokenizer) if spoken else tokenizer.policy.stops)
        ids = {"bos_token_id": tokenizer.policy.bos, "eos_token_id": stops[0] if len(stops) == 1 else stops or None}
    pad = _padding(tokenizer, cfg, labels, start)
    if cfg.encoder_layers:
        # transformers pads the decoder's inputs with what they begin with
        ids = ids | {"decoder_start_token_id": start, "pad_token_id": start}
    if getattr(cfg.positions, "offset", 0) and cfg.positions.offset - 1 in ids.values():
        raise UserError(
            f"export: positions begin at {cfg.positions.offset}, so {family.model_type} takes the id before that for "
            "padding, and it is the tokenizer's BOS or EOS"
        )
    config = {
        "architectures": [family.architecture_of(cfg)], "model_type": family.model_type, "pad_token_id": pad,
        **family.write(cfg), "vocab_size": vocab, "torch_dtype": dtype, **ids, **labels_json(labels),
    }  # fmt: skip
    files = {"config.json": config, "generation_config.json": ids}
    texts = {name: (json.dumps(values, indent=2) + "\n").encode() for name, values in files.items()}
    if tokenizer is None:
        return texts
    # what an encoder reads, and a text that has a label, end as documents do
    whole = labels is not None or cfg.encoder_layers > 0 or not cfg.causal
    # RoBERTa's is where its positions begin, whatever the tokenizer's is
    pad = pad if cfg.encoder_layers else config["pad_token_id"]
    return texts | hugging_face_files(tokenizer, whole=whole, pad=pad, types=cfg.token_types > 1)


def _padding(tokenizer: Tokenizer | None, cfg: ModelConfig, labels: tuple[str, ...] | None, start: int) -> int | None:
    """The id that fills up texts of a batch, for models that must know it; None: it is no matter, or there is none."""
    if tokenizer is None or (cfg.causal and not cfg.encoder_layers and labels is None):
        return None
    named, policy = roles(tokenizer), tokenizer.policy
    if cfg.encoder_layers:
        return named.get("pad_token", start)
    # of a causal model transformers labels the last token that is not the padding: EOS may be it, BOS never
    first, never = (policy.bos, policy.eos) if cfg.causal else (None, policy.bos)
    wanted = [named.get("pad_token"), first, named.get("unk_token"), *tokenizer.special_tokens().values()]
    return next((index for index in wanted if index is not None and index != never), None)
