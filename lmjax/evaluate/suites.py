"""The suites of `evaluate --suite NAME`: from what the command line says to a table and a JSON file."""

import difflib
import json
import os
from dataclasses import replace
from pathlib import Path

import jax

from lmjax.checkpoint import write_whole
from lmjax.errors import UserError, path_text
from lmjax.evaluate.calibration import Scaling
from lmjax.evaluate.choices import Classification, MultipleChoice
from lmjax.evaluate.contamination import Contamination
from lmjax.evaluate.domains import Domains
from lmjax.evaluate.memorization import Memorization
from lmjax.evaluate.minimal_pairs import MinimalPairs
from lmjax.evaluate.result import Result
from lmjax.evaluate.rolling import Perplexity
from lmjax.evaluate.settings import Settings
from lmjax.evaluate.writing import Generation
from lmjax.language_model import LanguageModel
from lmjax.sharding import Mesh, build_mesh

HARNESS = "lm-eval:"
SUITES = {
    "multiple-choice": MultipleChoice,
    "classification": Classification,
    "minimal-pairs": MinimalPairs,
    "perplexity": Perplexity,
    "generation": Generation,
    "memorization": Memorization,
    "contamination": Contamination,
}
# those that read no file, and those that can do without one where an option says so
WITHOUT_DATA = {"memorization": None, "perplexity": "by"}
# what each takes beside --data and --limit
TAKES = {
    "multiple-choice": {"shots", "shots_from", "seed", "template", "fit_temperature", "uncalibrated"},
    "classification": {"shots", "shots_from", "seed", "template", "labels", "fit_temperature", "uncalibrated"},
    "minimal-pairs": set(),
    "perplexity": {"seed", "by"},
    "generation": {
        "shots",
        "shots_from",
        "seed",
        "template",
        "max_new_tokens",
        "stop",
        "samples",
        "sample_temperature",
        "answer",
    },
    "memorization": {"seed", "prompt_tokens", "max_new_tokens"},
    "contamination": {"seed", "template", "ngram"},
    HARNESS: {"shots", "seed", "include"},
}
# options beside --data that only suites take
OF_SUITES = (
    "limit", "shots", "shots_from", "seed", "template", "labels", "max_new_tokens", "stop", "include", "samples",
    "sample_temperature", "answer", "by", "prompt_tokens", "ngram",
)  # fmt: skip
# and those that a model of labels takes too
OF_LABELS = ("fit_temperature", "uncalibrated")


def chosen(options):
    """The suite of the command line, with its examples read. Raises UserError for one that there is not, for options
    that it does not take, and for what is wrong in its files."""
    name = options.suite
    kind = HARNESS if name.startswith(HARNESS) else name
    if kind not in TAKES:
        near = difflib.get_close_matches(name, TAKES, n=1)
        known = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(SUITES)}, {HARNESS}TASK"
        raise UserError(f"--suite {name}: no such suite; {known}")
    given = {o: getattr(options, o) for o in (*OF_SUITES, *OF_LABELS) if getattr(options, o) is not None}
    least = {"limit": 1, "max_new_tokens": 1, "shots": 0, "seed": 0, "samples": 2, "prompt_tokens": 1, "ngram": 2}
    for option, smallest in least.items():
        if given.get(option, smallest) < smallest:
            raise UserError(f"--{option} {given[option]}: expected {smallest} or more")
    for option in sorted(given.keys() - TAKES[kind] - {"limit"}):
        raise UserError(f"--{option}: {kind} takes no such option")
    if kind == HARNESS:
        if options.data is not None:
            raise UserError(f"--data: the task of {HARNESS} says itself what it reads")
        return _harness().HarnessTask.of(name.removeprefix(HARNESS), **given)
    if options.data is None and not (name in WITHOUT_DATA and WITHOUT_DATA[name] in (None, *given)):
        raise UserError(f"--suite {name}: expected --data FILE")
    # a shell passes \n as two characters
    if "template" in given:
        given["template"] = given["template"].replace("\\n", "\n")
    if "stop" in given:
        given["stop"] = tuple(stop.replace("\\n", "\n") for stop in given["stop"])
    suite = Domains if "by" in given else SUITES[name]
    return suite.of(Settings(data=options.data, **given))


def _harness():
    """Its module, quiet: bars of libraries are no errors. Processes of its own would copy the threads of JAX."""
    for variable in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "DISABLE_MULTIPROC"):
        os.environ.setdefault(variable, "1")
    try:
        from lmjax.evaluate import harness
    except ImportError as error:
        if not (error.name or "").startswith("lm_eval"):
            raise
        raise UserError(f"--suite {HARNESS}: needs lm-eval: python -m pip install -e '.[eval]'") from None
    return harness


def of_run(suite, loaded, options):
    """The suite with the temperature that the model keeps, where it chooses by probabilities. loaded: the model."""
    if not isinstance(suite, MultipleChoice | Classification):
        return suite
    run = loaded.path if loaded.step is not None else None
    return replace(suite, scaling=Scaling(run, loaded.step, options.fit_temperature, bool(options.uncalibrated)))


def run(suite, model: LanguageModel) -> Result:
    """The result, computed on all devices, each with a share of the rows and all parameters."""
    mesh = build_mesh(Mesh())
    params = jax.device_put(model.params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    with jax.set_mesh(mesh):
        return suite.run(LanguageModel(model.cfg, params, model.tokenizer, model.path))


def show(result: Result, options, step: int | None, file: Path | None) -> None:
    """Print the table; write the JSON where a file is given."""
    after = "" if step is None else f" after step {step}"
    data = f" of {path_text(options.data)}" if options.data else ""
    print(f"{options.model}{after}: {result.suite}, {result.examples:,} examples{data}, weights {options.weights}")
    print("\n".join(result.lines()))
    if file is not None:
        about = {"model": options.model, "step": step, "data": options.data, "weights": options.weights}
        write_whole(file, json.dumps(about | result.as_dict(), indent=2) + "\n")
