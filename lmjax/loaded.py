"""A trained model, ready to score and to write: from one of our run directories, or a Hugging Face directory."""

import hashlib
import json
import re
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax

from lmjax import checkpoint, hosts, mirrors, trained
from lmjax.data.files import decode, read_bytes
from lmjax.data.sources import json_records
from lmjax.errors import Notice, UserError, path_text
from lmjax.experiment import DataConfig, Experiment
from lmjax.interop import peft
from lmjax.interop.read import load_params, open_checkpoint
from lmjax.interop.tensor_files import has_tensors
from lmjax.interop.tokenizer_files import of_directory
from lmjax.models import attention
from lmjax.models.config import ModelConfig
from lmjax.models.packed import Weights
from lmjax.models.packed_params import pack_params
from lmjax.models.transformer import abstract_params, apart
from lmjax.places import Place, Remote, place
from lmjax.run_directory import RunDirectory
from lmjax.sharding import placement
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.classification import Classification
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.tokenizers import HuggingFace, Tokenizer
from lmjax.tokenizers.sides import decoder_start

HUB = "hf:"
MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
# what decides the numbers of a directory that is no run
IDENTITY_FILES = ["*.safetensors", "adapter_config.json"]
# tokens of a row in which a Hugging Face directory's model labels texts
LABELLED_ROW = 1024
# what a run remembers of the model that init_from names, where it goes on needing that
BASE = "base.json"


@dataclass(frozen=True)
class Loaded:
    """experiment: the run's; of a Hugging Face directory, one that says its model and how to evaluate it. tokenizer:
    None where the directory has none. step: of a run. held_out: the run's own held-out text. start: the id that the
    decoder of an encoder-decoder begins with; None: nobody says, or there is no encoder."""

    path: Place
    experiment: Experiment
    tokenizer: Tokenizer | None
    params: dict
    step: int | None = None
    held_out: Place | None = None
    start: int | None = None

    @property
    def run(self) -> Place | None:
        """The run's directory; None: it is no run."""
        return None if self.step is None else self.path


def load_model(path: Place | str, step: int | str | None = None, *, mesh=None, stacked: bool = True) -> Loaded:
    """step: of a run: a number, "best", or None for the newest good one. stacked: how the layers lie, of a Hugging Face
    directory (`transformer.apart`). A directory of PEFT's is read with its base. Nothing outside the directory is
    needed but an adapter's base. Warns (Notice) of what is read otherwise than it stands there. Raises UserError where
    it is no kind of these, or what is in it is not whole."""
    where = resolve(path)
    adapts = is_peft(where)
    if not adapts and not is_directory(where):
        return load_run(where, step, mesh)
    if step is not None:
        raise UserError(f"--step {step}: {path_text(where)} is not a run and has no steps")
    if adapts:
        return _load_peft(where, mesh)
    found = open_checkpoint(where)
    if not (found.cfg.causal or found.cfg.masked_head or found.labels):
        raise UserError(
            f"{path_text(where)}: {found.family.model_type} is an encoder without a head; expected a model of the next "
            "token, of masked ones or of labels"
        )
    tokenizer = _checked(of_directory(where), where, found.cfg)
    for note in found.notes:
        _notify(f"{path_text(where)}: {note}")
    task, data = CausalLM() if found.cfg.causal else MaskedLM(), DataConfig()
    if found.cfg.encoder_layers:
        task = Seq2Seq(start=found.start)
    if found.labels is not None:
        task, data = Classification(labels=found.labels), DataConfig(length=min(found.cfg.context, LABELLED_ROW))
    experiment = Experiment(
        name=re.sub(r"\W", "-", where.resolve().name) or "model", model=found.cfg, task=task, data=data,
        tokenizer=HuggingFace(path=str(where)),
        batch_size=8 if (data.length or found.cfg.context) <= 1024 else 1,
    )  # fmt: skip
    return Loaded(where, experiment, tokenizer, load_params(found, stacked=stacked, mesh=mesh), start=found.start)


def is_directory(where: Place) -> bool:
    """Whether it is Hugging Face's, with a model's tensors."""
    return (
        isinstance(where, Path)
        and not (where / "experiment.json").is_file()
        and (where / "config.json").is_file()
        and not is_peft(where)
    )


def params_at(path: Place | str, step: int | None = None, mesh: jax.sharding.Mesh | None = None) -> dict:
    """All parameters that lie there, layers stacked, whatever the model is for. Raises UserError as `load_model`."""
    where = resolve(path)
    if is_directory(where):
        return load_params(open_checkpoint(where), stacked=True, mesh=mesh)
    return load_model(where, step, mesh=mesh).params


def is_peft(where: Place) -> bool:
    """Whether there is an adapter by PEFT, without its base; trainers may have put the base's config.json there."""
    if not isinstance(where, Path) or not (where / peft.CONFIG).is_file():
        return False
    return not (where / "config.json").is_file() or not has_tensors(where)


def base_of_peft(where: Path) -> Path:
    """The directory of an adapter's base. Raises UserError where there is none that is Hugging Face's."""
    base = resolve(peft.base_of(where))
    if not is_directory(base):
        raise UserError(
            f"{path_text(where)}: its base {path_text(base)} is no Hugging Face directory with a model's tensors"
        )
    return base


def _load_peft(where: Path, mesh) -> Loaded:
    base = load_model(base_of_peft(where), mesh=mesh)
    found = open_checkpoint(base.path)
    tokenizer, experiment = of_directory(where, model=base.path), base.experiment
    if tokenizer is None:
        tokenizer = base.tokenizer
    else:
        _checked(tokenizer, where, found.cfg)
        experiment = replace(experiment, tokenizer=HuggingFace(path=str(where)))
    params = peft.merged(where, found, base.params)
    return replace(base, path=where, experiment=experiment, tokenizer=tokenizer, params=params)


def _checked(tokenizer: Tokenizer | None, where: Path, cfg: ModelConfig) -> Tokenizer | None:
    """The tokenizer. Raises UserError where it has more ids than the model."""
    if tokenizer is not None and tokenizer.vocab_size > cfg.vocab:
        raise UserError(
            f"{path_text(where)}: the tokenizer has {tokenizer.vocab_size} ids, more than config.json's vocab_size "
            f"of {cfg.vocab}"
        )
    return tokenizer


def tokenizer_of(where: Path) -> Tokenizer | None:
    """Of a Hugging Face directory, or PEFT's: where that has none, its base's. None: there is none."""
    if not is_peft(where):
        return of_directory(where)
    base = base_of_peft(where)
    own = of_directory(where, model=base)
    return of_directory(base) if own is None else own


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
    params, step = _restored(run, experiment, step, mesh)
    if experiment.adapter is not None:
        params = trained.whole(experiment, params, base_params(run, experiment, mesh))
    tokenizer, start = run.tokenizer(), None
    if experiment.model.encoder_layers and tokenizer is not None:
        start = getattr(experiment.task, "start", None)
        start = decoder_start(tokenizer.policy) if start is None else start
    return Loaded(path, experiment, tokenizer, params, step, path / "held_out.jsonl", start)


def load_adapter(path: Place | str, step: int | str | None = None) -> tuple[Experiment, dict]:
    """The adapter of a run, without its base (`trained.split`). Raises UserError where it has none."""
    where = resolve(path)
    run = RunDirectory(where)
    if not run.exists or run.experiment().adapter is None:
        raise UserError(f"--adapter: {path_text(where)} is no run with an adapter")
    experiment = run.experiment()
    return experiment, _restored(run, experiment, step, None)[0]


def _restored(run: RunDirectory, experiment: Experiment, step: int | str | None, mesh) -> tuple[dict, int]:
    """The parameters in a run's checkpoint, and its step."""
    manifest = checkpoint.chosen(run.checkpoints, step, _notify)
    shapes = jax.eval_shape(partial(trained.split, experiment), abstract_params(experiment.model))
    ours, frozen = jax.tree.map(
        lambda x, names: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement(mesh, names, x.shape)),
        shapes, trained.axis_names(experiment),
    )  # fmt: skip
    params, _ = checkpoint.restore(run.checkpoints, manifest, trained.stored(experiment, ours, frozen))
    return params, manifest.step


def identity(path: Place | str, step: int | None = None) -> dict:
    """Which model lies there: the step of a run (None: its newest good one; not a run: None), and a fingerprint of all
    files that hold its numbers. Raises UserError as `load_model`."""
    where, known = resolve(path), []
    if isinstance(where, Remote) or (where / "experiment.json").is_file():
        run = RunDirectory(where)
        manifest = checkpoint.chosen(run.checkpoints, step, _notify)
        step, known = manifest.step, [manifest.files]
        if run.experiment().adapter is not None:
            known.append(run.read_json(BASE)["fingerprint"])
    else:
        files = sorted(file for pattern in IDENTITY_FILES for file in where.glob(pattern))
        digests = lambda: [[file.name, checkpoint.sha256(file)] for file in files]
        known = hosts.by_first("base/files", digests, hosts.READY_LIMIT)
        if is_peft(where):
            known.append(identity(base_of_peft(where))["fingerprint"])
    return {"step": step, "fingerprint": hashlib.sha256(json.dumps(known).encode()).hexdigest()}


def base_params(run: RunDirectory, experiment: Experiment, mesh: jax.sharding.Mesh | None) -> dict:
    """The parameters that a run's adapter belongs to, or that its answers are compared with. Raises UserError where
    they are not there or are others now."""
    recorded, base = run.read_json(BASE), experiment.init_from
    needed = "is an adapter of" if experiment.adapter is not None else "compares its answers with those of"
    here = f"{path_text(run.path)} {needed} {path_text(base)}"
    try:
        found = identity(base, recorded["step"])
    except UserError as error:
        raise UserError(f"{here}, which init_from in its experiment.json names: {error}") from None
    if found["fingerprint"] != recorded["fingerprint"]:
        raise UserError(f"{here}, which is not the model it was: its files have changed since the run began")
    return params_at(base, recorded["step"], mesh)


def check_next_token(loaded: Loaded, verb: str) -> None:
    """Raises UserError for a model that says nothing about the next token: an encoder, or one of a task with outputs of
    its own, such as labels."""
    cfg, task = loaded.experiment.model, type(loaded.experiment.task).__name__
    kind = "is a model" if cfg.causal else "is an encoder"
    if not cfg.causal or cfg.outputs:
        raise UserError(
            f"{verb}: {path_text(loaded.path)} {kind} trained for {task}; expected a model of the next token"
        )


def check_one_stack(loaded: Loaded, verb: str) -> None:
    """Raises UserError for an encoder-decoder, where a verb reads one text."""
    if loaded.experiment.model.encoder_layers:
        raise UserError(
            f"{verb}: {path_text(loaded.path)} is an encoder-decoder; expected a model of one stack of layers"
        )


def _runnable(experiment: Experiment) -> Experiment:
    """The experiment, with another attention kernel where the run asked by name for one that this machine has not."""
    cfg = experiment.model
    need = replace(attention.need_of(cfg, apart=experiment.segmented, length=experiment.length), dropout=False)
    if isinstance(cfg.kernel, attention.Auto) or not (reason := attention.obstacle(cfg.kernel, need)):
        return experiment
    _notify(f"the run asked for {type(cfg.kernel).__name__}: {reason}; the fastest that runs here is used instead")
    return replace(experiment, model=replace(cfg, kernel=attention.Auto()))


def _notify(text: str) -> None:
    warnings.warn(text, Notice, stacklevel=3)


def read_texts(file: Place) -> list[str]:
    """The documents of a file: each line's `text` in a .jsonl (or .jsonl.gz) file, else the whole as one."""
    if not file.is_file():
        raise UserError(f"--text {path_text(file)}: no such file")
    content = decode(read_bytes(file), file, "strict")
    if ".jsonl" not in file.suffixes:
        return [content]
    return [record.text("text") for record in json_records(content, file)]


def needed_tokenizer(loaded: Loaded) -> Tokenizer:
    """Raises UserError where the directory has none."""
    if loaded.tokenizer is None:
        raise UserError(
            f"{path_text(loaded.path)}: no tokenizer.json, vocab.json + merges.txt, tokenizer.model or spiece.model"
        )
    return loaded.tokenizer


def needed_start(loaded) -> int:
    """The id that the decoder of an encoder-decoder begins with; loaded: anything with a `start` and a `path`. Raises
    UserError where nobody says it."""
    if loaded.start is None:
        raise UserError(f"{path_text(loaded.path)}: its tokenizer has no BOS or EOS for the decoder to begin with")
    return loaded.start


def with_weights(loaded: Loaded, weights: Weights) -> dict:
    """The parameters with their matrices in that precision, as models/packed.py has them."""
    if weights == "float32":
        return loaded.params
    return pack_params(loaded.experiment.model, apart(loaded.params), weights)
