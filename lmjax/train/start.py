"""Training that starts from a trained model: `init_from`, a run or a Hugging Face directory."""

import copy
from dataclasses import replace
from pathlib import Path

import jax

from lmjax import configs, inherited
from lmjax.errors import UserError, path_text
from lmjax.experiment import Experiment
from lmjax.interop.family import normal
from lmjax.loaded import BASE, HUB, base_params, identity, params_at, resolve, tokenizer_of
from lmjax.models.positions import Learned
from lmjax.places import Place, is_url
from lmjax.run_directory import RunDirectory
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.tokenizers import Tokenizer


def fitting(experiment: Experiment, tokenizer: Tokenizer) -> Experiment:
    """The experiment with the vocabulary of what it starts from. Raises UserError where its model computes something
    else, the heads apart (`inherited`), or its tokenizer gives other ids."""
    other = inherited.origin(experiment.init_from)
    place, cfg, theirs = other.place, inherited.alike(experiment, other), _tokenizer(other.place)
    # rotary and sinusoidal positions have no parameters, so their context is free
    context = cfg.context if isinstance(cfg.positions, Learned) else experiment.model.context
    ours = replace(experiment.model, vocab=experiment.model.vocab or cfg.vocab)
    changes = configs.differences(
        configs.to_tree(normal(replace(cfg, context=context))), configs.to_tree(normal(ours)), "model"
    )
    if changes:
        raise UserError(f"init_from {path_text(place)} is another model: {'; '.join(changes)}")
    if theirs is not None and _ids(theirs) != _ids(tokenizer):
        raise UserError(
            f"init_from {path_text(place)} has another tokenizer; --tokenizer=HuggingFace --tokenizer.path=PATH (or "
            "SentencePiece, with the path of the .model file) takes it"
        )
    inherited.check_trained(experiment, other)
    return experiment.with_vocab(max(tokenizer.vocab_size, cfg.vocab))


def speaking(experiment: Experiment, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the chat template of what training starts from, where it has none of its own."""
    theirs = None if tokenizer.chat is not None else _tokenizer(resolve(experiment.init_from))
    if theirs is None:
        return tokenizer
    spoken = copy.copy(tokenizer)
    spoken.chat = theirs.chat
    return spoken


def params_of(experiment: Experiment, run: RunDirectory, mesh: jax.sharding.Mesh, where, *, begun: bool) -> dict:
    """The parameters that training starts from, laid out as `where` says. A run that goes on needing them remembers
    whose they are; raises UserError where, once it has begun, these are others."""
    if begun:
        params = base_params(run, experiment, mesh)
    else:
        found = identity(experiment.init_from) if experiment.needs_base else {"step": None}
        params = params_at(experiment.init_from, found["step"], mesh)
        if experiment.needs_base:
            run.write_json(BASE, found)
    return jax.tree.map(jax.device_put, inherited.completed(experiment, params, mesh), where)


def rooted(experiment: Experiment) -> Experiment:
    """Where the base is needed later: with its whole path, as it is looked for from wherever the run is used."""
    base = experiment.init_from
    if not experiment.needs_base or is_url(base) or base.startswith(HUB):
        return experiment
    return replace(experiment, init_from=str(Path(base).absolute()))


def starting(experiment: Experiment, begun: Experiment | None) -> Experiment:
    """With the id for the decoder of a task that has none of its own: the run's, where that has begun, else that of
    what training starts from."""
    task = experiment.task
    if not isinstance(task, Seq2Seq) or task.start is not None or not experiment.model.encoder_layers:
        return experiment
    if begun is not None:
        return replace(experiment, task=replace(task, start=getattr(begun.task, "start", None)))
    return replace(experiment, task=replace(task, start=inherited.origin(experiment.init_from).start))


def _tokenizer(place: Place) -> Tokenizer | None:
    if (place / "experiment.json").is_file():
        return RunDirectory(place).tokenizer()
    return tokenizer_of(place)


def _ids(tokenizer: Tokenizer) -> list:
    """What decides the ids of a text, control tokens around it apart."""
    return [tokenizer.kind, *tokenizer.files.items()]
