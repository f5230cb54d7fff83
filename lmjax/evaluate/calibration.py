"""Calibration of what a model chooses among, and the temperature that a run keeps for it (`temperature.json`).

One temperature is fitted by the likelihood of examples that are not reported on, and belongs to a task and to the
checkpoint that it was fitted with: elsewhere it is not used.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from lmjax.checkpoint import write_whole
from lmjax.data.sources import Record
from lmjax.errors import UserError, at, path_text
from lmjax.evaluate.averages import grouped
from lmjax.evaluate.records import read
from lmjax.evaluate.result import Result
from lmjax.evaluate.settings import Settings
from lmjax.json_files import read_object
from lmjax.places import Place
from lmjax.tasks.calibration_metrics import (
    BINS,
    TEMPERATURES,
    Calibration,
    at_coverage,
    calibration,
    diagram,
    fitted_temperature,
    scaled,
)

NAME = "temperature.json"
LIMIT = 1 << 20
# of a probability that float64 has as 0
LEAST = 1e-300
# shares of the examples in the printed table
SHOWN = tuple(k / 10 for k in range(1, 11))


class Answered(NamedTuple):
    """What a model makes of N examples. log_p: by a name, (N, C) logarithms of what is proportional to the
    probabilities of the choices, -inf where there are fewer. true_N: which is right."""

    log_p: dict[str, np.ndarray]
    true_N: np.ndarray


@dataclass(frozen=True)
class Fitted:
    """nll_before, nll_after: nats of an example that it was fitted on, at temperature 1 and at this one."""

    temperature: float
    nll_before: float
    nll_after: float


@dataclass(frozen=True)
class Fit:
    """task: what is asked, so that it is found again. step: of the checkpoint. data: what it was fitted on, as the user
    said it, and a fingerprint of those examples. temperatures: by the names of `Answered.log_p`."""

    task: dict[str, Any]
    step: int | None
    data: str
    fingerprint: str
    examples: int
    temperatures: dict[str, Fitted]

    def told(self) -> str:
        """As a user reads it."""
        each = ", ".join(f"{name} {_number(one.temperature)}" for name, one in self.temperatures.items())
        nats = ", ".join(f"{one.nll_before:.4f} to {one.nll_after:.4f}" for one in self.temperatures.values())
        return f"temperature {each}, fitted on {self.examples:,} examples of {path_text(self.data)} (nats {nats})"


def _number(temperature: float) -> str:
    return f"{temperature:.4f}" + (" (no better than chance)" if temperature == TEMPERATURES[1] else "")


@dataclass(frozen=True)
class Scaling:
    """What the command line says of temperature, and the run that keeps it. run: None: the model is no run. fit: a file
    or a share of the data; None: the temperature that the run keeps is used. uncalibrated: it is left out."""

    run: Place | None = None
    step: int | None = None
    fit: str | None = None
    uncalibrated: bool = False

    def __post_init__(self):
        if self.fit is not None and self.uncalibrated:
            raise UserError("--fit_temperature and --uncalibrated: expected one of them")
        self.share()

    def share(self) -> float | None:
        """Of the data, what a temperature is fitted on; None: it is a file, or nothing. Raises UserError for a share
        that leaves nothing."""
        try:
            share = float(self.fit)
        except (TypeError, ValueError):
            return None
        if not 0 < share < 1:
            raise UserError(f"--fit_temperature {self.fit}: expected a file, or a share above 0 and below 1")
        return share

    def parted(self, examples: list, seed: int, kinds: Sequence[str] | None = None) -> tuple[list, list]:
        """(those that are reported on, those that a temperature is fitted on), drawn by seed. kinds: of each example;
        the share is of each kind. Raises UserError where one of them is empty, of a kind too."""
        share, drawn, rng = self.share(), set(), np.random.default_rng(seed)
        if share is None:
            return examples, []
        for kind, places in grouped(kinds or [""] * len(examples)).items():
            count, N = round(share * len(places)), len(places)
            if not 0 < count < N:
                of = f" of {kind}" if kind else ""
                raise UserError(
                    f"--fit_temperature {self.fit}: of {N} examples{of} that is {count}; expected at least one on "
                    "each side"
                )
            drawn |= set(places[rng.permutation(N)[:count]].tolist())
        return [one for i, one in enumerate(examples) if i not in drawn], [examples[i] for i in sorted(drawn)]

    def where(self, data: str) -> str:
        """What was fitted on, in words."""
        return self.fit if self.share() is None else f"{self.fit} of {data}"

    def found(self, task: dict[str, Any]) -> tuple[Fit | None, str | None]:
        """(what the run keeps for the task at this step, what to say of it). Raises UserError where the file is
        damaged."""
        if self.fit is not None or self.run is None:
            return None, None
        file = self.run / NAME
        kept = read_fits(file) if file.is_file() else []
        of_task = [one for one in kept if one.task == task]
        here = [one for one in of_task if one.step == self.step]
        if here and not self.uncalibrated:
            return here[0], f"{here[0].told()}, from {path_text(file)}"
        if here:
            return None, f"the temperature in {path_text(file)} is left out"
        if of_task:
            steps = ", ".join(str(one.step) for one in of_task)
            return None, f"none: {path_text(file)} has one of step {steps}"
        return None, None

    def keep(self, fit: Fit) -> str:
        """Into the run's file, in place of an earlier one for the same task and step; says so."""
        if self.run is None:
            return f"{fit.told()}; the model is no run, and nothing keeps it"
        file = self.run / NAME
        kept = read_fits(file) if file.is_file() else []
        others = [one for one in kept if (one.task, one.step) != (fit.task, fit.step)]
        write_whole(file, json.dumps({"fits": [asdict(one) for one in (*others, fit)]}, indent=2) + "\n")
        return f"{fit.told()}, kept in {path_text(file)}"


def read_fits(file: Place) -> list[Fit]:
    """Of a `temperature.json`. Raises UserError for anything else in it."""
    tree = read_object(file, LIMIT, "the temperatures of a run")
    try:
        fits = [
            Fit(**one | {"temperatures": {name: Fitted(**fit) for name, fit in one["temperatures"].items()}})
            for one in tree["fits"]
        ]
        whole = all(one.temperature > 0 for fit in fits for one in fit.temperatures.values())
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"{path_text(file)}: damaged; --fit_temperature writes it anew once it is removed")
    return fits


def fingerprint(examples: Sequence) -> str:
    """Of what a temperature was fitted on; examples: as JSON has them."""
    return hashlib.sha256(json.dumps(list(examples), sort_keys=True).encode()).hexdigest()[:32]


def parted(
    settings: Settings, items: list, make: Callable[[list[Record]], list], kinds: Sequence[str] | None = None
) -> tuple[list, list]:
    """(those that are reported on, those that a temperature is fitted on). items: all of the data, with `where`. make:
    from the records of another file to such items. kinds: see `Scaling.parted`. Raises UserError as that and
    `check_apart`."""
    scaling = Scaling(fit=settings.fit_temperature, uncalibrated=bool(settings.uncalibrated))
    if scaling.fit is None or scaling.share() is not None:
        return scaling.parted(items, settings.seed, kinds)
    records = read(scaling.fit, "--fit_temperature")
    check_apart(items, records)
    with at("--fit_temperature"):
        return items, make(records)


def check_apart(reported: Sequence, fit_on: Sequence) -> None:
    """Of examples with `where`, their file and line. Raises UserError where one is fitted on and reported on too."""
    real = functools.cache(os.path.realpath)

    def place_of(one) -> tuple[str, str]:
        file, _, line = one.where.rpartition(":")
        return real(file), line

    here = set(map(place_of, reported))
    if both := next((one.where for one in fit_on if place_of(one) in here), None):
        raise UserError(f"--fit_temperature: {both} is reported on too; expected another file, or a share of --data")


def fitted(answered: Answered, task: dict[str, Any], step: int | None, data: str, mark: str) -> Fit:
    """One temperature for each name. mark: the examples' fingerprint. Raises UserError as `fitted_temperature`."""
    rows_N, found = np.arange(len(answered.true_N)), {}
    for name, log_p_NC in answered.log_p.items():
        try:
            temperature = fitted_temperature(log_p_NC, answered.true_N)
        except UserError as error:
            raise UserError(f"--fit_temperature: {name}: {error}") from None
        before, after = (float(-scaled(log_p_NC, t)[rows_N, answered.true_N].mean()) for t in (1.0, temperature))
        found[name] = Fitted(temperature, before, after)
    return Fit(task, step, data, mark, len(rows_N), found)


@dataclass(frozen=True)
class Judged:
    """calibrations: (name, as the model is and, where there is a temperature, with it). said: of the temperature; None:
    nothing is to be said."""

    calibrations: list[tuple[str, Calibration]]
    said: str | None
    fit: Fit | None

    def beside(self, result: Result, over: str = "the choices") -> Result:
        """The result of the same examples with this in it: tables, a diagram of the first name's probabilities with the
        temperature, and in the JSON bins and curves. over: among what the model chose, in words."""
        last, name = dict(self.calibrations), self.calibrations[0][0]
        selective = [
            {"coverage": share, **{key: at_coverage(one.selective, share).accuracy for key, one in last.items()}}
            for share in SHOWN
        ]
        protocol = {
            "calibration": f"softmax over {over}; ECE over {BINS} bins of equal width, intervals by bootstrap "
            "over the examples; of few examples ECE is too high by chance: see if_calibrated",
            "scaling": self.said,
        }
        tables = {
            "calibration": [{"probabilities": key, **one.row()} for key, one in self.calibrations],
            "accuracy_of_the_most_confident": selective,
        }
        extra = {
            "calibration_details": [{"probabilities": key, **one.as_dict()} for key, one in self.calibrations],
            "temperature": None if self.fit is None else asdict(self.fit),
        }
        title = f"reliability of {name} at temperature {last[name].temperature:.4g}"
        return replace(
            result, protocol=result.protocol | protocol, tables=result.tables | tables, extra=result.extra | extra,
            drawn=result.drawn | {title: diagram(last[name].reliability)},
        )  # fmt: skip


def judge(
    reported: Answered, fit_on: Answered | None, examples: Sequence, task: dict[str, Any], scaling: Scaling,
    data: str | None, seed: int = 0,
) -> Judged:  # fmt: skip
    """Of the examples that are reported on; where there are others to fit on, one temperature is fitted on those and
    kept with the run. examples: those, as JSON has them; of none, fit_on is not looked at. data: where they come from,
    in words."""
    fit, said = scaling.found(task)
    if examples:
        fit = fitted(fit_on, task, scaling.step, scaling.where(data), fingerprint(examples))
        said = scaling.keep(fit)
    found = []
    for name, log_p_NC in reported.log_p.items():
        found.append((name, calibration(log_p_NC, reported.true_N, seed=seed)))
        if fit is not None:
            t = fit.temperatures[name].temperature
            found.append((name, calibration(log_p_NC, reported.true_N, temperature=t, seed=seed)))
    return Judged(found, said, fit)


def of_predictions(predictions: list[dict], truth: list[int]) -> Answered:
    """Of a model of labels (`labels.Labeller`)."""
    p_NC = np.array([list(one["probabilities"].values()) for one in predictions])
    return Answered({"labels": np.log(np.maximum(p_NC, LEAST))}, np.array(truth))


def at_temperature(predictions: list[dict], fit: Fit | None) -> list[dict]:
    """Predictions of labels with the probabilities that a temperature makes; the labels stay."""
    if fit is None or not predictions:
        return predictions
    (log_p_NC,) = of_predictions(predictions, []).log_p.values()
    p_NC = np.exp(scaled(log_p_NC, fit.temperatures["labels"].temperature))
    return [
        one | {"probabilities": dict(zip(one["probabilities"], p_C.tolist(), strict=True))}
        for one, p_C in zip(predictions, p_NC, strict=True)
    ]


def task_of_labels(labels: tuple[str, ...]) -> dict[str, Any]:
    """As `Fit.task` of a model of labels."""
    return {"task": "Classification", "labels": list(labels)}
