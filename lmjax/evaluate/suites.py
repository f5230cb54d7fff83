"""The suites of `evaluate --suite NAME`: from what the command line says to a table and a JSON file."""

import difflib
import json
import os
from pathlib import Path

import jax

from lmjax.checkpoint import write_whole
from lmjax.errors import UserError, path_text
from lmjax.evaluate.choices import Classification, MultipleChoice
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
}
# what each takes beside --data and --limit
TAKES = {
    "multiple-choice": {"shots", "shots_from", "seed", "template"},
    "classification": {"shots", "shots_from", "seed", "template", "labels"},
    "minimal-pairs": set(),
    "perplexity": {"seed"},
    "generation": {"shots", "shots_from", "seed", "template", "max_new_tokens", "stop"},
    HARNESS: {"shots", "seed", "include"},
}
# options beside --data that only suites take
OF_SUITES = ("limit", "shots", "shots_from", "seed", "template", "labels", "max_new_tokens", "stop", "include")


def chosen(options):
    """The suite of the command line, with its examples read. Raises UserError for one that there is not, for options
    that it does not take, and for what is wrong in its files."""
    name = options.suite
    kind = HARNESS if name.startswith(HARNESS) else name
    if kind not in TAKES:
        near = difflib.get_close_matches(name, TAKES, n=1)
        known = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(SUITES)}, {HARNESS}TASK"
        raise UserError(f"--suite {name}: no such suite; {known}")
    given = {option: getattr(options, option) for option in OF_SUITES if getattr(options, option) is not None}
    least = {"limit": 1, "max_new_tokens": 1, "shots": 0, "seed": 0}
    for option, smallest in least.items():
        if given.get(option, smallest) < smallest:
            raise UserError(f"--{option} {given[option]}: expected {smallest} or more")
    for option in sorted(given.keys() - TAKES[kind] - {"limit"}):
        raise UserError(f"--{option}: {kind} takes no such option")
    if kind == HARNESS:
        if options.data is not None:
            raise UserError(f"--data: the task of {HARNESS} says itself what it reads")
        return _harness().HarnessTask.of(name.removeprefix(HARNESS), **given)
    if options.data is None:
        raise UserError(f"--suite {name}: expected --data FILE")
    # a shell passes \n as two characters
    if "template" in given:
        given["template"] = given["template"].replace("\\n", "\n")
    if "stop" in given:
        given["stop"] = tuple(stop.replace("\\n", "\n") for stop in given["stop"])
    return SUITES[name].of(Settings(data=options.data, **given))


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
