"""Everything between an experiment and its first step: all that can be wrong is found here, in this order: the
experiment's own numbers and the devices, the data's whereabouts, the run directory, the text, the vocabulary."""

import hashlib
from dataclasses import dataclass, replace

import jax

from lmjax import hosts, tokenizers
from lmjax.cache import built_whole, cache_root
from lmjax.data.batches import Batches
from lmjax.data.mixture import parts
from lmjax.errors import UserError
from lmjax.experiment import Experiment
from lmjax.run_directory import RunDirectory
from lmjax.sharding import build_mesh
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.chat import dated, with_template
from lmjax.tokenizers.sides import prompt_ids
from lmjax.train import reading
from lmjax.train.reading import Reading
from lmjax.train.start import fitting, rooted, speaking, starting
from lmjax.train.step import check_split, kernel


@dataclass(frozen=True)
class Prepared:
    """An experiment with its vocabulary and its labels filled in, and what it runs on."""

    experiment: Experiment
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    reading: Reading
    batches: Batches


def check_devices(experiment: Experiment) -> jax.sharding.Mesh:
    """The mesh, once the batch and the weights can be split over it and the kernel can run on it. Raises UserError."""
    mesh = build_mesh(experiment.mesh)
    check_split(experiment, mesh)
    return mesh


def prepare(experiment: Experiment, run: RunDirectory | None, known: list[str] | None = None) -> Prepared:
    """Tokenizer, what is read, and batches. With a run directory that has begun, its own tokenizer. known: the
    fingerprints of what is read, where another process has read it."""
    mesh = check_devices(experiment)
    if known is None:
        for source, _ in parts(experiment.data.source):
            source.check()
    if run is not None:
        run.check_place()
        if run.exists:
            run.lock()
    begun = run.experiment() if run is not None and run.exists else None
    tokenizer = run.tokenizer() if begun else build_tokenizer(experiment)
    experiment = reading.fitted(experiment)
    if experiment.init_from is not None:
        experiment = rooted(experiment)
        # a run that has begun needs what it started from no more
        if begun:
            experiment = experiment.with_vocab(begun.model.vocab)
        else:
            experiment, tokenizer = fitting(experiment, tokenizer), speaking(experiment, tokenizer)
        experiment = starting(experiment, begun)
    tokenizer = tokenizer if begun else dated(tokenizer)
    experiment = experiment.with_vocab(tokenizer.vocab_size)
    # what the tokenizer lacks for the task is found before it reads the text
    experiment.task.change(tokenizer, experiment.seed)
    read = reading.read(experiment, tokenizer, known)
    # a prompt that cannot be encoded is found now, not at the first sample
    prompt_ids(experiment.sampling.prompt, tokenizer)
    return Prepared(experiment, mesh, tokenizer, read, batches_of(experiment, tokenizer, read))


def batches_of(experiment: Experiment, tokenizer: Tokenizer, read: Reading) -> Batches:
    """Of the training rows, as the task changes them."""
    change = experiment.task.change(tokenizer, experiment.seed)
    return Batches(read.parts, rows=experiment.batch_size, seed=experiment.seed, change=change)


def build_tokenizer(experiment: Experiment) -> Tokenizer:
    """The experiment's tokenizer; one that is trained is kept in the cache, named by its settings and its text."""
    config = experiment.tokenizer
    if not config.needs_text:
        return config.build(lambda: [])
    # the list of characters must hold the held-out ones; what learns frequencies must not see them
    splits = ("train", "held_out") if isinstance(config, tokenizers.Characters) else ("train",)
    # the template is no part of what is trained, and its file may change
    digest = hashlib.sha256(f"{tokenizers.FORMAT} {replace(config, chat_template=None)!r}".encode())
    empty = True
    for text in reading.texts(experiment, splits):
        content = text.encode()
        digest.update(f"{len(content)} ".encode() + content)
        empty = empty and not text.strip()
    if empty:
        sources = ", ".join(reading.place(source) for source, _ in parts(experiment.data.source))
        raise UserError(f"data.source {sources}: there is no text in it")
    directory = cache_root() / "tokenizers" / digest.hexdigest()[:32]
    if not (directory / tokenizers.POLICY_FILE).is_file():
        with built_whole(directory) as scratch:
            config.build(lambda: reading.texts(experiment, splits)).save(scratch)
    return with_template(tokenizers.load(directory), config.chat_template)


def in_force(prepared: Prepared) -> str:
    """One line that says what is used, not what was asked for."""
    experiment, devices, read = prepared.experiment, jax.devices(), prepared.reading
    sizes = " x ".join(f"{name} {size}" for name, size in prepared.mesh.shape.items() if size > 1)
    used, why = kernel(experiment, prepared.mesh)
    trained, held_out = (sum(read.tokens[split]) for split in ("train", "held_out"))
    return " | ".join(
        [
            f"in force: {len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
            + (f" of {hosts.count()} processes" if hosts.count() > 1 else ""),
            f"mesh {sizes or 'one device'}",
            f"attention {type(used).__name__} ({why})",
            f"{experiment.model.dtype} over float32 parameters",
            *savings(experiment, prepared.mesh),
            f"{type(experiment.data.source).__name__} {trained:,} tokens + {held_out:,} held out",
            read.kept,
        ]
    )


def savings(experiment: Experiment, mesh: jax.sharding.Mesh) -> list[str]:
    """What trades time for memory or precision for time, each in a few words; empty where nothing does."""
    model = experiment.model
    with jax.set_mesh(mesh):
        chunk = experiment.loss_chunk()
    return [
        *([f"loss by chunks of {chunk} places"] if chunk < experiment.length else []),
        *([f"{model.products} products in the blocks"] if model.products != "plain" else []),
        *([f"remat {model.remat}"] if model.remat != "nothing" else []),
        *(["optimizer state on the host"] if experiment.optimizer_memory == "host" else []),
    ]
