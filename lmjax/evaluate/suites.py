"""The suites of `evaluate --suite NAME`: from what the command line says to a table and a JSON file."""

import difflib
import json
import os
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import jax

from lmjax.checkpoint import write_whole
from lmjax.errors import UserError, path_text
from lmjax.evaluate.bbq import Bbq
from lmjax.evaluate.calibration import Scaling
from lmjax.evaluate.choices import Classification, MultipleChoice
from lmjax.evaluate.contamination import Contamination
from lmjax.evaluate.counterfactual import Counterfactual
from lmjax.evaluate.crows_pairs import CrowsPairs
from lmjax.evaluate.domains import Domains
from lmjax.evaluate.fairness_page import page
from lmjax.evaluate.memorization import Memorization
from lmjax.evaluate.minimal_pairs import MinimalPairs
from lmjax.evaluate.result import Result
from lmjax.evaluate.rolling import Perplexity
from lmjax.evaluate.settings import Settings
from lmjax.evaluate.stereoset import StereoSet
from lmjax.evaluate.toxicity import Toxicity
from lmjax.evaluate.winobias import WinoBias
from lmjax.evaluate.word_association import WordAssociation
from lmjax.evaluate.writing import Generation
from lmjax.language_model import LanguageModel
from lmjax.loaded import Loaded, check_next_token, check_one_stack
from lmjax.masked_model import MaskedModel
from lmjax.sharding import Mesh, build_mesh
from lmjax.tasks.masked_lm import MaskedLM

HARNESS = "lm-eval:"
SUITES = {
    "multiple-choice": MultipleChoice,
    "classification": Classification,
    "minimal-pairs": MinimalPairs,
    "perplexity": Perplexity,
    "generation": Generation,
    "crows-pairs": CrowsPairs,
    "winobias": WinoBias,
    "stereoset": StereoSet,
    "bbq": Bbq,
    "word-association": WordAssociation,
    "counterfactual": Counterfactual,
    "toxicity": Toxicity,
    "memorization": Memorization,
    "contamination": Contamination,
}
# those that choose by probabilities, for which a run keeps a temperature
CHOOSING = MultipleChoice | Classification | MinimalPairs | Bbq
# those that read masked models too; the others are of the next token alone
MASKED = ("crows-pairs", "winobias", "stereoset", "bbq", "word-association")
# those that read no file, and those that can do without one where an option says so
WITHOUT_DATA = {"memorization": None, "perplexity": "by"}
# of texts that vote
OF_SAMPLES = {"samples", "sample_temperature", "answer"}
# what each takes beside --data and --limit
TAKES = {
    "multiple-choice": {"shots", "shots_from", "seed", "template", "fit_temperature", "uncalibrated"},
    "classification": {"shots", "shots_from", "seed", "template", "labels", "fit_temperature", "uncalibrated"},
    "minimal-pairs": {"seed", "fit_temperature", "uncalibrated"},
    "perplexity": {"seed", "by"},
    "generation": {"shots", "shots_from", "seed", "template", "max_new_tokens", "stop"} | OF_SAMPLES,
    "crows-pairs": {"seed"},
    "winobias": {"seed"},
    "stereoset": {"seed"},
    "bbq": {"seed", "fit_temperature", "uncalibrated"},
    "word-association": {"seed", "vectors"},
    "counterfactual": {"seed", "groups"},
    "toxicity": {"seed", "words", "classifier", "toxic_label", "samples", "max_new_tokens"},
    "memorization": {"seed", "prompt_tokens", "max_new_tokens"},
    "contamination": {"seed", "template", "ngram"},
    HARNESS: {"shots", "seed", "include"},
}
# options beside --data that only suites take
OF_SUITES = (
    "limit", "shots", "shots_from", "seed", "template", "labels", "max_new_tokens", "stop", "include", "vectors",
    "groups", "words", "classifier", "toxic_label", "samples", "sample_temperature", "answer", "by", "prompt_tokens",
    "ngram", "report", "earlier",
)  # fmt: skip
# of these those that are of the whole command, whatever the suite
OF_REPORT = ("report", "earlier")
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
    asked = [option for option in (*OF_SUITES, *OF_LABELS) if option not in OF_REPORT]
    given = {option: getattr(options, option) for option in asked if getattr(options, option) is not None}
    # one text has no others to vote with
    fewest = 2 if name == "generation" else 1
    least = {"limit": 1, "max_new_tokens": 1, "shots": 0, "seed": 0, "samples": fewest, "prompt_tokens": 1, "ngram": 2}
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


def parted(options) -> list[Namespace]:
    """The command line for each suite of --suite A,B --data FILE,FILE: the options that a suite takes, where another
    suite takes the others; an empty FILE is none. --fit_temperature may be parted too. Raises UserError where there are
    not as many files as suites."""
    if "," not in options.suite or options.suite.startswith(HARNESS):
        return [options]
    names, files = options.suite.split(","), (options.data or "").split(",")
    if len(names) != len(files):
        raise UserError(f"--data: {len(files)} file(s) for {len(names)} suites; expected as many, with commas between")
    if any(name.startswith(HARNESS) for name in names):
        raise UserError(f"--suite {options.suite}: {HARNESS} stands alone")
    fits = (options.fit_temperature or "").split(",")
    if len(fits) not in (1, len(names)):
        raise UserError(f"--fit_temperature: {len(fits)} for {len(names)} suites; expected one, or as many")
    takes = set().union(*(TAKES.get(name, set()) for name in names))
    found = []
    for i, (name, file) in enumerate(zip(names, files, strict=True)):
        own = {"suite": name, "data": file or None}
        if len(fits) > 1:
            own["fit_temperature"] = fits[i] or None
        found.append(Namespace(**vars(options) | dict.fromkeys(takes - TAKES.get(name, set())) | own))
    return found


def check_model(options, loaded: Loaded) -> None:
    """Raises UserError for a model that the suite cannot read."""
    check_one_stack(loaded, "evaluate --suite")
    if isinstance(loaded.experiment.task, MaskedLM):
        if options.suite not in MASKED:
            raise UserError(
                f"--suite {options.suite}: scores the next token, and {path_text(loaded.path)} is a masked model; "
                f"expected a causal model, or one of {', '.join(MASKED)}"
            )
        if loaded.tokenizer is not None and loaded.tokenizer.policy.mask is None and options.suite != MASKED[-1]:
            raise UserError(f"{path_text(loaded.path)}: its tokenizer has no mask token")
        return
    check_next_token(loaded, "evaluate --suite")


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
    if not isinstance(suite, CHOOSING):
        return suite
    return replace(suite, scaling=Scaling(loaded.run, loaded.step, options.fit_temperature, bool(options.uncalibrated)))


def run(suite, model: LanguageModel | MaskedModel) -> Result:
    """The result, computed on all devices, each with a share of the rows and all parameters."""
    mesh = build_mesh(Mesh())
    params = jax.device_put(model.params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    with jax.set_mesh(mesh):
        return suite.run(type(model)(model.cfg, params, model.tokenizer, model.path))


def show(result: Result, options, step: int | None) -> dict:
    """Print the table; the result as JSON has it."""
    after = "" if step is None else f" after step {step}"
    data = f" of {path_text(options.data)}" if options.data else ""
    print(f"{options.model}{after}: {result.suite}, {result.examples:,} examples{data}, weights {options.weights}")
    print("\n".join(result.lines()))
    about = {"model": options.model, "step": step, "data": options.data, "weights": options.weights}
    return about | result.as_dict()


def write(told: list[dict], file: Path) -> None:
    """One result as it is, several as {"results": [...]}."""
    write_whole(file, json.dumps(told[0] if len(told) == 1 else {"results": told}, indent=2) + "\n")


def report(told: list[dict], earlier: list[dict], file: Path) -> None:
    """Write the page of these results, and of those that earlier commands wrote."""
    # as a file of JSON has it: no tuples
    write_whole(file, page([*earlier, *json.loads(json.dumps(told))]))
    print(f"{path_text(file)}: {len(earlier) + len(told)} suites")
