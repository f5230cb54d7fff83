"""Everything between an experiment and its first step: all that can be wrong is found here, in this order: the
experiment's own numbers and the devices, the data's whereabouts, the run directory, the text, the vocabulary."""

import hashlib
import json
from dataclasses import dataclass

import jax

from lmjax import hosts, tokenizers
from lmjax.cache import built_whole, cache_root
from lmjax.data.batches import Batches
from lmjax.data.sources import Source, parts
from lmjax.data.store import Store, TokenStream, joined, open_store
from lmjax.errors import UserError
from lmjax.experiment import Experiment
from lmjax.generate.text import prompt_ids
from lmjax.run_directory import RunDirectory
from lmjax.sharding import build_mesh
from lmjax.tokenizers import Tokenizer
from lmjax.train.start import fitting, rooted
from lmjax.train.step import check_split, kernel


@dataclass(frozen=True)
class Prepared:
    """An experiment with its vocabulary filled in, and what it runs on."""

    experiment: Experiment
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    sources: list[Source]
    stores: list[Store]
    batches: Batches
    held_out: TokenStream

    def held_out_texts(self) -> list[str]:
        """The held-out documents, read again."""
        return [document.text for source in self.sources for split, document in source.split() if split == "held_out"]

    @property
    def data(self) -> dict:
        """What a run directory remembers of its data."""
        tokens = {split: [store.manifest[split]["tokens"] for store in self.stores] for split in ("train", "held_out")}
        return {"fingerprints": [store.fingerprint for store in self.stores], "tokens": tokens}


def check_devices(experiment: Experiment) -> jax.sharding.Mesh:
    """The mesh, once the batch and the weights can be split over it and the kernel can run on it. Raises UserError."""
    mesh = build_mesh(experiment.mesh)
    check_split(experiment, mesh)
    return mesh


def prepare(experiment: Experiment, run: RunDirectory | None, known: list[str] | None = None) -> Prepared:
    """Tokenizer, token stores and batches. With a run directory that has begun, its own tokenizer. known: the
    fingerprints of the stores, where another process made them."""
    mesh = check_devices(experiment)
    sources = parts(experiment.data.source)
    if known is None:
        for source, _ in sources:
            source.check()
    if run is not None:
        run.check_place()
        if run.exists:
            run.lock()
    begun = run is not None and run.exists
    tokenizer = run.tokenizer() if begun else build_tokenizer(experiment, [source for source, _ in sources])
    if experiment.init_from is not None:
        experiment = rooted(experiment)
        # a run that has begun needs what it started from no more
        experiment = experiment.with_vocab(run.experiment().model.vocab) if begun else fitting(experiment, tokenizer)
    experiment = experiment.with_vocab(tokenizer.vocab_size)
    names = known or [None] * len(sources)
    stores = [open_store(source, tokenizer, name) for (source, _), name in zip(sources, names, strict=True)]
    streams = [(store.stream("train"), weight) for store, (_, weight) in zip(stores, sources, strict=True)]
    length = experiment.model.context
    for (stream, _), (source, _) in zip(streams, sources, strict=True):
        if stream.size <= length:
            raise UserError(
                f"data.source {_place(source)}: the training text has {stream.size} tokens; a window of model.context "
                f"{length} needs {length + 1}"
            )
    held_out = joined([store.stream("held_out") for store in stores])
    if held_out.size < 2:
        raise UserError(
            f"data.source {', '.join(_place(source) for source, _ in sources)}: nothing to evaluate, the held-out text "
            f"has {held_out.size} token(s); try a larger held_out.share, or --data.source.held_out=LastPart"
        )
    # a prompt that cannot be encoded is found now, not at the first sample
    prompt_ids(experiment.sampling.prompt, tokenizer)
    batches = Batches(
        streams, length=length, rows=experiment.batch_size, seed=experiment.seed, apart=experiment.data.apart
    )
    return Prepared(experiment, mesh, tokenizer, [source for source, _ in sources], stores, batches, held_out)


def build_tokenizer(experiment: Experiment, sources: list) -> Tokenizer:
    """The experiment's tokenizer; one that is trained is kept in the cache, named by its settings and its text."""
    config = experiment.tokenizer
    if not config.needs_text:
        return config.build(lambda: [])
    # the list of characters must hold the held-out ones; what learns frequencies must not see them
    splits = ("train", "held_out") if isinstance(config, tokenizers.Characters) else ("train",)

    def texts():
        return (document.text for source in sources for split, document in source.split() if split in splits)

    digest = hashlib.sha256(f"{tokenizers.FORMAT} {config!r}".encode())
    empty = True
    for text in texts():
        digest.update(text.encode())
        empty = empty and not text.strip()
    if empty:
        raise UserError(f"data.source {', '.join(map(_place, sources))}: there is no text in it")
    directory = cache_root() / "tokenizers" / digest.hexdigest()[:32]
    if not (directory / tokenizers.POLICY_FILE).is_file():
        with built_whole(directory) as scratch:
            config.build(texts).save(scratch)
    return tokenizers.load(directory)


def in_force(prepared: Prepared) -> str:
    """One line that says what is used, not what was asked for."""
    experiment, devices = prepared.experiment, jax.devices()
    sizes = " x ".join(f"{name} {size}" for name, size in prepared.mesh.shape.items() if size > 1)
    used, why = kernel(experiment, prepared.mesh)
    store = prepared.stores[0]
    cache = "reused" if all(store.reused for store in prepared.stores) else "made"
    tokens = sum(store.manifest["train"]["tokens"] for store in prepared.stores)
    return " | ".join(
        [
            f"in force: {len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
            + (f" of {hosts.count()} processes" if hosts.count() > 1 else ""),
            f"mesh {sizes or 'one device'}",
            f"attention {type(used).__name__} ({why})",
            f"{experiment.model.dtype} over float32 parameters",
            *savings(experiment, prepared.mesh),
            f"{type(experiment.data.source).__name__} {tokens:,} tokens + {prepared.held_out.size:,} held out",
            f"token cache {cache} {store.directory}",
        ]
    )


def savings(experiment: Experiment, mesh: jax.sharding.Mesh) -> list[str]:
    """What trades time for memory or precision for time, each in a few words; empty where nothing does."""
    model = experiment.model
    with jax.set_mesh(mesh):
        chunk = experiment.task.chunk(experiment.microbatch_size, model.context, model.vocab)
    return [
        *([f"loss by chunks of {chunk} places"] if chunk is not None and chunk < model.context else []),
        *([f"{model.products} products in the blocks"] if model.products != "plain" else []),
        *([f"remat {model.remat}"] if model.remat != "nothing" else []),
        *(["optimizer state on the host"] if experiment.optimizer_memory == "host" else []),
    ]


def held_out_lines(texts: list[str]) -> str:
    """The held-out documents as JSON lines, as `evaluate --text` reads them."""
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


def _place(source) -> str:
    """What a source reads, for messages."""
    return str(getattr(source, "path", None) or getattr(source, "directory", None) or type(source).__name__)
