"""A trained model from its run directory, ready to score and to write."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax

from lmjax import checkpoint
from lmjax.data.sources import decode, json_lines, read_bytes
from lmjax.errors import UserError, path_text
from lmjax.experiment import Experiment
from lmjax.models import attention
from lmjax.models.transformer import abstract_params
from lmjax.run_directory import RunDirectory
from lmjax.tokenizers import Tokenizer


@dataclass(frozen=True)
class LoadedRun:
    run: RunDirectory
    experiment: Experiment
    tokenizer: Tokenizer
    params: dict
    step: int


def load_run(path: Path, step: int | str | None = None) -> LoadedRun:
    """The parameters of a checkpoint: a step, "best", or None for the newest good one. Needs nothing outside the
    directory. Raises UserError where it is no run directory, or the checkpoint is not there or not whole."""
    if not path.is_dir():
        raise UserError(f"--model {path_text(path)}: no such directory")
    run = RunDirectory(path)
    experiment = _runnable(run.experiment())
    manifest = checkpoint.chosen(run.checkpoints, step, lambda text: print(f"WARNING: {text}"))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), abstract_params(experiment.model)
    )
    params, _ = checkpoint.restore(run.checkpoints, manifest, abstract)
    return LoadedRun(run, experiment, run.tokenizer(), params, manifest.step)


def _runnable(experiment: Experiment) -> Experiment:
    """The experiment, with another attention kernel where the run asked by name for one that this machine has not."""
    cfg = experiment.model
    need = replace(attention.need_of(cfg, apart=experiment.data.apart), dropout=False)
    if isinstance(cfg.kernel, attention.Auto) or not (reason := attention.obstacle(cfg.kernel, need)):
        return experiment
    print(f"the run asked for {type(cfg.kernel).__name__}: {reason}; the fastest that runs here is used instead")
    return replace(experiment, model=replace(cfg, kernel=attention.Auto()))


def read_texts(file: Path) -> list[str]:
    """The documents of a file: each line's `text` in a .jsonl (or .jsonl.gz) file, else the whole as one."""
    if not file.is_file():
        raise UserError(f"--text {path_text(file)}: no such file")
    content = decode(read_bytes(file), file, "strict")
    if ".jsonl" not in file.suffixes:
        return [content]
    return [text for _, text in json_lines(content, "text", file)]
