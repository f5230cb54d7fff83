"""A trained model, ready to score and to write: from one of our run directories, or a Hugging Face directory."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from lmjax import checkpoint, mirrors
from lmjax.data.files import decode, read_bytes
from lmjax.data.sources import json_lines
from lmjax.errors import UserError, path_text
from lmjax.experiment import Experiment
from lmjax.interop.read import load_params, open_checkpoint
from lmjax.interop.tokenizer_files import of_directory
from lmjax.models import attention
from lmjax.models.packed import Weights
from lmjax.models.packed_params import pack_params
from lmjax.models.transformer import abstract_params, apart, param_names
from lmjax.places import Place, Remote, place
from lmjax.run_directory import RunDirectory
from lmjax.sharding import placement
from lmjax.tokenizers import HuggingFace, Tokenizer

HUB = "hf:"
MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True)
class Loaded:
    """experiment: the run's; of a Hugging Face directory, one that says its model and how to evaluate it. tokenizer:
    None where the directory has none. step: of a run. held_out: the run's own held-out text."""

    path: Place
    experiment: Experiment
    tokenizer: Tokenizer | None
    params: dict
    step: int | None = None
    held_out: Place | None = None


def load_model(path: Place | str, step: int | str | None = None, *, mesh=None, stacked: bool = True) -> Loaded:
    """step: of a run: a number, "best", or None for the newest good checkpoint. stacked: how the layers lie
    (`transformer.apart`). Nothing outside the directory is needed. Raises UserError where it is neither kind, or
    what is in it is not whole."""
    where = resolve(path)
    if isinstance(where, Remote) or (where / "experiment.json").is_file() or not (where / "config.json").is_file():
        return load_run(where, step, mesh)
    if step is not None:
        raise UserError(f"--step {step}: {path_text(where)} is not a run and has no steps")
    found = open_checkpoint(where)
    if not found.cfg.causal:
        raise UserError(
            f"{path_text(where)}: {found.family.model_type} is an encoder; expected a model of the next token"
        )
    tokenizer = of_directory(where)
    if tokenizer is not None and tokenizer.vocab_size > found.cfg.vocab:
        raise UserError(
            f"{path_text(where)}: the tokenizer has {tokenizer.vocab_size} ids, more than config.json's vocab_size "
            f"of {found.cfg.vocab}"
        )
    for note in found.notes:
        print(f"{path_text(where)}: {note}")
    experiment = Experiment(
        name=re.sub(r"\W", "-", where.resolve().name) or "model", model=found.cfg,
        tokenizer=HuggingFace(path=str(where)),
        batch_size=8 if found.cfg.context <= 1024 else 1,
    )  # fmt: skip
    return Loaded(where, experiment, tokenizer, load_params(found, stacked=stacked, mesh=mesh))


def resolve(path: Place | str) -> Place:
    """The directory that a path names; "hf:NAME" is fetched from the Hugging Face hub. Of a URL: the run there, or a
    copy of the Hugging Face directory there. Raises UserError where there is no such directory: a bare name is never
    looked for elsewhere."""
    text = str(path)
    if text.startswith(HUB):
        return _fetched(text.removeprefix(HUB))
    found = place(path)
    if isinstance(found, Remote):
        if (found / "experiment.json").is_file():
            return found
        if (found / "config.json").is_file():
            return mirrors.copied(found, MODEL_FILES)
        raise UserError(f"{path_text(text)}: neither a run nor a Hugging Face directory is there")
    if not found.is_dir():
        raise UserError(f"{path_text(text)}: no such directory (a model of the Hugging Face hub is named {HUB}NAME)")
    return found


def _fetched(name: str) -> Path:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{HUB}{name}: needs huggingface_hub: python -m pip install -e '.[hub]'") from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=MODEL_FILES))
    except Exception as error:  # of the network, the name, the rights: the library has a class for each
        raise UserError(f"{HUB}{name}: not fetched: {' '.join(str(error).split())[:300]}") from None


def load_run(path: Place | str, step: int | str | None = None, mesh: jax.sharding.Mesh | None = None) -> Loaded:
    """The parameters of a run's checkpoint, layers stacked, as `load_model`."""
    path = place(path)
    if not path.is_dir():
        raise UserError(f"{path_text(path)}: no such directory")
    run = RunDirectory(path)
    experiment = _runnable(run.experiment())
    manifest = checkpoint.chosen(run.checkpoints, step, lambda text: print(f"WARNING: {text}"))
    abstract = jax.tree.map(
        lambda x, names: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement(mesh, names, x.shape)),
        abstract_params(experiment.model), param_names(experiment.model),
    )  # fmt: skip
    params, _ = checkpoint.restore(run.checkpoints, manifest, abstract)
    return Loaded(path, experiment, run.tokenizer(), params, manifest.step, path / "held_out.jsonl")


def _runnable(experiment: Experiment) -> Experiment:
    """The experiment, with another attention kernel where the run asked by name for one that this machine has not."""
    cfg = experiment.model
    need = replace(attention.need_of(cfg, apart=experiment.apart, length=experiment.length), dropout=False)
    if isinstance(cfg.kernel, attention.Auto) or not (reason := attention.obstacle(cfg.kernel, need)):
        return experiment
    print(f"the run asked for {type(cfg.kernel).__name__}: {reason}; the fastest that runs here is used instead")
    return replace(experiment, model=replace(cfg, kernel=attention.Auto()))


def read_texts(file: Place) -> list[str]:
    """The documents of a file: each line's `text` in a .jsonl (or .jsonl.gz) file, else the whole as one."""
    if not file.is_file():
        raise UserError(f"--text {path_text(file)}: no such file")
    content = decode(read_bytes(file), file, "strict")
    if ".jsonl" not in file.suffixes:
        return [content]
    return [text for _, text in json_lines(content, "text", file)]


def needed_tokenizer(loaded: Loaded) -> Tokenizer:
    """Raises UserError where the directory has none."""
    if loaded.tokenizer is None:
        raise UserError(f"{path_text(loaded.path)}: no tokenizer.json, vocab.json + merges.txt or tokenizer.model")
    return loaded.tokenizer


def with_weights(loaded: Loaded, weights: Weights) -> dict:
    """The parameters with their matrices in that precision, as models/packed.py has them."""
    if weights == "float32":
        return loaded.params
    return pack_params(loaded.experiment.model, apart(loaded.params), weights)
