"""The verb `predict`: what a trained model makes of every record of a file, a line of JSON for each, in their order.

What is done lies in OUTPUT.partial, whose first line says of what; once all is done it becomes OUTPUT. So the same
command goes on where it was stopped, and its output is the same to the bit.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lmjax.data.files import read_bytes
from lmjax.data.mixture import read_for
from lmjax.data.sources import json_line
from lmjax.errors import UserError, path_text
from lmjax.evaluate.calibration import Fit, Scaling, at_temperature, task_of_labels
from lmjax.evaluate.predictors import predictor
from lmjax.evaluate.progress import followed
from lmjax.evaluating import with_search
from lmjax.loaded import Loaded, identity, load_model, needed_tokenizer, with_weights
from lmjax.places import place
from lmjax.tasks.classification import Classification

# records that are done together
PART = 256


def run(options, step: int | str | None, output: Path) -> int:
    """Writes the file. Raises UserError before anything is computed where the output is there already, or what is there
    of it belongs to another model or input."""
    partial = output.with_name(output.name + ".partial")
    if output.exists():
        raise UserError(f"--output {path_text(output)}: is there already; expected a new file")
    if not place(options.input).is_file():
        raise UserError(f"--input {path_text(options.input)}: no such file; expected one file")
    loaded = with_search(load_model(options.model, step), options.beams, options.length_penalty)
    experiment = loaded.experiment
    if not experiment.task.on_records:
        raise UserError(
            f"predict: {path_text(options.model)} was trained for {type(experiment.task).__name__}; expected a "
            "model of a task on records (generate writes texts)"
        )
    records = list(read_for(experiment.task, experiment.data.source, options.input).records())
    if not records:
        raise UserError(f"--input {path_text(options.input)}: there is no record in it")
    fit, said = _temperature(loaded, bool(options.uncalibrated))
    if said:
        print(said, flush=True)
    of = header(options, loaded.step)
    of["temperature"] = None if fit is None else fit.temperatures["labels"].temperature
    predict = predictor(experiment, needed_tokenizer(loaded))
    params = with_weights(loaded, options.weights)
    try:
        with open(partial, "a+b") as stream:
            done = begun(stream, of, partial)
            if done:
                print(f"going on after {done:,} of {len(records):,} records in {path_text(partial)}", flush=True)
            left = [records[i : i + PART] for i in range(done, len(records), PART)]
            for part in followed(left, len(records) - done, len):
                first = [] if stream.tell() else [of]
                stream.write("".join(map(json_line, [*first, *at_temperature(predict(params, part), fit)])).encode())
                stream.flush()
                os.fsync(stream.fileno())
    finally:
        if partial.exists() and not partial.stat().st_size:
            partial.unlink()
    finish(partial, output)
    print(f"{path_text(output)}: {len(records):,} predictions")
    return 0


def _temperature(loaded: Loaded, uncalibrated: bool) -> tuple[Fit | None, str | None]:
    """(that the run keeps for its labels, what to say of it). Raises UserError where the file is damaged, or a model
    without probabilities of labels is asked to leave it out."""
    task = loaded.experiment.task
    if not isinstance(task, Classification):
        if uncalibrated:
            raise UserError(f"--uncalibrated: a model of {type(task).__name__} has no probabilities of labels")
        return None, None
    return Scaling(loaded.run, loaded.step, None, uncalibrated).found(task_of_labels(task.labels))


def header(options, step: int | None) -> dict:
    """What predictions follow from."""
    return {
        "model": identity(options.model, step)["fingerprint"], "step": step, "weights": options.weights,
        "beams": options.beams, "length_penalty": options.length_penalty,
        "input": hashlib.sha256(read_bytes(place(options.input))).hexdigest(),
    }  # fmt: skip


def begun(stream: BinaryIO, of: dict, partial: Path) -> int:
    """How many predictions the file has, whole parts only; what is behind them is cut off. Raises UserError
    where the file is of something else."""
    stream.seek(0)
    first = stream.readline()
    if not first.endswith(b"\n"):
        stream.truncate(0)
        stream.seek(0)
        return 0
    differing = [name for name, value in of.items() if _parsed(first).get(name) != value]
    if differing:
        another = " and ".join(differing)
        raise UserError(f"{path_text(partial)}: is of another {another}; delete it to begin anew")
    ends = [stream.tell()]
    ends += [ends[0] + length for length in _lengths(stream)]
    done = (len(ends) - 1) // PART * PART
    stream.truncate(ends[done])
    stream.seek(ends[done])
    return done


def _parsed(line: bytes) -> dict:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _lengths(stream: BinaryIO) -> Iterator[int]:
    """For every whole line that is left, how far its end is."""
    read = 0
    for line in stream:
        if not line.endswith(b"\n"):
            return
        read += len(line)
        yield read


def finish(partial: Path, output: Path) -> None:
    """The predictions without the first line, all at once; then the partial file is gone."""
    whole = output.with_name(output.name + ".whole")
    with open(partial, "rb") as source, open(whole, "wb") as target:
        source.readline()
        for line in source:
            target.write(line)
        target.flush()
        os.fsync(target.fileno())
    os.replace(whole, output)
    partial.unlink()
