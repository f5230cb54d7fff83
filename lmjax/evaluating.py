"""The verb `evaluate`: how good a model is at what it was trained for, on its own held-out data or on a user's."""

import json
from dataclasses import asdict, replace

import jax

from lmjax.checkpoint import write_whole
from lmjax.data.batches import Rows
from lmjax.data.files import matching
from lmjax.data.mixture import read_as
from lmjax.data.packing import PackedRows
from lmjax.data.sources import Record
from lmjax.data.store import stream_of
from lmjax.data.windows import Windows
from lmjax.errors import UserError, path_text
from lmjax.evaluate.calibration import Scaling, check_apart
from lmjax.evaluate.held_out import HeldOut, compile_loss, held_out
from lmjax.evaluate.labels import Labeller
from lmjax.evaluate.predictors import predictor
from lmjax.evaluate.preferences import referred
from lmjax.experiment import Experiment
from lmjax.loaded import Loaded, load_model, needed_tokenizer, read_texts, with_weights
from lmjax.places import Place, place
from lmjax.sharding import Mesh, build_mesh
from lmjax.tasks.chat import Chat
from lmjax.tasks.classification import Classification
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tasks.preferences import Preferences
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.tokenizers import Tokenizer

# tasks on records that are judged by the likelihood of what the records have, not by predictions
LIKELIHOOD = (Chat, Preferences)
# what is scored
UNITS = {MaskedLM: "tokens hidden", Preferences: "pairs"}


def run(options, step: int | str | None, result_file) -> int:
    """Prints the figures, and writes them to the file where there is one."""
    loaded = with_search(load_model(options.model, step), options.beams, options.length_penalty)
    task = loaded.experiment.task
    scaling_of(loaded, options)
    if task.on_records and options.text:
        raise UserError(f"--text: {type(task).__name__} is evaluated on records; expected --data FILE")
    if not task.on_records and options.data:
        raise UserError("--data: this model is evaluated on a text; expected --text FILE, or --suite")
    given = options.data if task.on_records else options.text
    if not given and loaded.held_out is None:
        name = "--data" if task.on_records else "--text"
        raise UserError(f"{name} FILE is needed: {options.model} is not a run, and has no held-out data of its own")
    after = "" if loaded.step is None else f" after step {loaded.step}"
    weights = "" if options.weights == "float32" else f", weights {options.weights}"
    if task.on_records and not isinstance(task, LIKELIHOOD):
        loaded = replace(loaded, experiment=with_context(loaded.experiment, options.context))
        figures, said = on_records(loaded, given, options.weights, scaling_of(loaded, options))
        print(f"{options.model}{after}: {given or 'its held-out records'}{weights}")
        print("\n".join([*([said] if said else []), *figures.lines()]))
        result = asdict(figures)
        if isinstance(task, Classification):
            result |= {"calibrations": [one.as_dict() for one in figures.calibrations], "temperature": said}
    else:
        score = on_examples if task.on_records else on_text
        scored = score(loaded, place(given) if given else loaded.held_out, options.weights, options.context)
        size = "" if scored.text_bytes is None else f", {scored.text_bytes:,} bytes"
        print(f"{options.model}{after}: {scored.tokens:,} {UNITS.get(type(task), 'tokens')}{size}")
        print(f"protocol: {scored.protocol}{weights}")
        print("  ".join(f"{name} {value:.6f}" for name, value in scored.metrics().items()))
        result = scored.as_dict()
    if result_file:
        written = {"step": loaded.step, "weights": options.weights} | result
        write_whole(result_file, json.dumps(written, indent=2) + "\n")
    return 0


def with_search(loaded: Loaded, beams: int | None, length_penalty: float | None) -> Loaded:
    """With another search for the texts that are written; None: the experiment's. Raises UserError where none are."""
    asked = {"beams": beams, "length_penalty": length_penalty}
    changes, task = {name: value for name, value in asked.items() if value is not None}, loaded.experiment.task
    if not changes:
        return loaded
    if not isinstance(task, Seq2Seq):
        raise UserError(f"--{next(iter(changes))}: a model of {type(task).__name__} searches for no texts")
    try:
        return replace(loaded, experiment=replace(loaded.experiment, task=replace(task, **changes)))
    except ValueError as error:
        raise UserError(f"--{next(iter(changes))}: {error}") from None


def on_text(loaded: Loaded, file: Place, weights: str, context: int | None) -> HeldOut:
    """The likelihood of a text. Raises UserError where it cannot be read, or there is nothing in it."""
    tokenizer = needed_tokenizer(loaded)
    experiment = with_context(loaded.experiment, context)
    read = Windows(stream_of(read_texts(file), tokenizer), experiment.length, experiment.apart, experiment.task.ahead)
    return _scored(experiment, with_weights(loaded, weights), tokenizer, read)


def on_examples(loaded: Loaded, file: Place, weights: str, context: int | None) -> HeldOut:
    """The likelihood of what counts in a file of records. Raises UserError, with the file and the line."""
    tokenizer, experiment = needed_tokenizer(loaded), with_context(loaded.experiment, context)
    examples = [
        example
        for record in _records(experiment, file)
        for example in experiment.task.encode(record, tokenizer, experiment.model, experiment.length)
    ]
    if not examples:
        raise UserError(f"--data {path_text(file)}: nothing in it counts in rows of {experiment.length} tokens")
    read = PackedRows(examples, length=experiment.length, source_length=experiment.source_length)
    if isinstance(experiment.task, Preferences):
        read = referred(loaded, experiment, read)
    return _scored(experiment, with_weights(loaded, weights), tokenizer, read)


def _scored(experiment: Experiment, params, tokenizer: Tokenizer, read: Rows) -> HeldOut:
    # the batch is the run's own, so that the sums are too; devices that cannot share it stay idle
    devices = jax.devices()
    devices = devices if experiment.microbatch_size % len(devices) == 0 else devices[:1]
    mesh = build_mesh(Mesh(), devices)
    params = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    with jax.set_mesh(mesh):
        return held_out(experiment, compile_loss(experiment), params, read, mesh, tokenizer)


def scaling_of(loaded: Loaded, options) -> Scaling:
    """What is asked of temperature. Raises UserError for a model without probabilities of labels."""
    task, asked = loaded.experiment.task, (options.fit_temperature, options.uncalibrated)
    if not isinstance(task, Classification) and asked != (None, None):
        name = "uncalibrated" if options.uncalibrated else "fit_temperature"
        raise UserError(f"--{name}: a model of {type(task).__name__} has no probabilities of labels")
    return Scaling(loaded.run, loaded.step, asked[0], bool(asked[1]))


def on_records(loaded: Loaded, given: str | None, weights: str, scaling: Scaling):
    """(the figures of the run's task on a file of records, what to say of a temperature). Raises UserError, with the
    file and the line."""
    experiment = loaded.experiment
    predict = predictor(experiment, needed_tokenizer(loaded))
    records = _records(experiment, given or loaded.held_out)
    if isinstance(predict, Labeller):
        records, fit_on = scaling.parted(records, 0)
        if scaling.fit is not None and not fit_on:
            fit_on = _records(experiment, scaling.fit, "--fit_temperature")
            check_apart(records, fit_on)
        data = given or "its held-out records"
        return predict.judged(with_weights(loaded, weights), records, fit_on, scaling, data)
    # what is wrong in the last record is told before anything is computed
    truth = predict.truth(records)
    return predict.figures(truth, predict(with_weights(loaded, weights), records)), None


def _records(experiment: Experiment, file: Place | str, option: str = "--data") -> list[Record]:
    source = read_as(experiment.data.source, str(file))
    matching(source.path, option)
    records = list(source.records())
    if not records:
        raise UserError(f"{option} {path_text(file)}: there is no record in it")
    return records


def with_context(experiment: Experiment, context: int | None) -> Experiment:
    """The experiment that evaluates in windows of so many tokens; None: as it was trained."""
    if context is None:
        return experiment
    if not 2 <= context <= experiment.model.context:
        raise UserError(f"--context {context}: expected 2 to {experiment.model.context}, the model's own context")
    try:
        return replace(experiment, data=replace(experiment.data, length=context))
    except ValueError as error:
        raise UserError(f"--context {context}: {error}") from None
