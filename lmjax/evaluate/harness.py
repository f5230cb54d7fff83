"""Every task of EleutherAI's lm-evaluation-harness, by its own code: our models as its `LM` (extra [eval]).

Requests, prompts, filters and metrics are the harness's; scores and texts come from `likelihood` and `writing`. Its
tasks are YAML that may name Python functions, so a task is a program like an experiment file; its data set is fetched
from the Hugging Face hub unless the task names local files.
"""

import difflib
import json
import logging
import random
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable

from lmjax.errors import UserError, path_text
from lmjax.evaluate.likelihood import (
    encode_pair,
    log_likelihoods,
    prefix_ids,
    protocol_of,
    rolling_pairs,
    rolling_sums,
)
from lmjax.evaluate.result import Figure, Result
from lmjax.evaluate.writing import ids_of, write_until
from lmjax.generate.sampling import choice
from lmjax.language_model import LanguageModel
from lmjax.tokenizers.sides import prompt_ids

# the seeds of its own command line: of `random`, of numpy, and of the sampler of shots
SEED, OTHER_SEED = 0, 1234
# for the errors of what is no mean; its own 100,000 take minutes for a corpus score in one process
RESAMPLES = 1000
NEW_TOKENS = 256


class Harness(LM):
    """A model of ours as lm-eval asks for one. cut: texts so far that were longer than the model's context."""

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model, self.cut = model, 0

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """(log p of the continuation in nats, whether it is what greedy decoding writes) for each request."""
        found = log_likelihoods(self.model, [encode_pair(self.model, *request.args) for request in requests])
        self.cut += found.cut
        return list(zip(found.sums.tolist(), found.greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests) -> list[float]:
        """log p of each whole text. As with its own models, BOS that the tokenizer puts there is scored after BOS."""
        prefix, context = prefix_ids(self.model), self.model.cfg.context
        texts = [prompt_ids(request.args[0], self.model.tokenizer) for request in requests]
        return rolling_sums(self.model, [rolling_pairs(prefix, ids, context) for ids in texts]).tolist()

    def generate_until(self, requests) -> list[str]:
        """What is written after each context, up to one of its `until`. Raises UserError for settings that there are
        not here."""
        texts, groups = [""] * len(requests), {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        for settings, members in groups.items():
            asked = dict(normalize_gen_kwargs(json.loads(settings), NEW_TOKENS))
            stops, room, sampled = (asked.pop(name, None) for name in ("until", "max_gen_toks", "do_sample"))
            how = {name: asked.pop(name) for name in ("temperature", "top_k", "top_p", "min_p") if name in asked}
            if unknown := [name for name, value in asked.items() if (name, value) != ("num_beams", 1)]:
                raise UserError(f"generation_kwargs of the task: {', '.join(unknown)} there is not here")
            how = choice(**how) if sampled else choice()
            prompts = [ids_of(self.model, requests[i].args[0]) for i in members]
            written = write_until(self.model, prompts, tuple(stops), room, how)
            self.cut += written.cut
            for i, text in zip(members, written.texts, strict=True):
                texts[i] = text
        return texts


@dataclass(frozen=True)
class HarnessTask:
    """name: of a task or a group, or the path of a YAML file. loaded: what its TaskManager made of that."""

    name: str
    loaded: dict
    limit: int | None

    @staticmethod
    def of(
        name: str,
        *,
        limit: int | None = None,
        shots: int | None = None,
        seed: int = OTHER_SEED,
        include: str | None = None,
    ) -> "HarnessTask":
        """include: a directory of further tasks. shots: None takes the task's own number. Raises UserError where there
        is no such task, or its data cannot be read."""
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        if include and not Path(include).is_dir():
            raise UserError(f"--include {path_text(include)}: no such directory")
        is_file = Path(name).suffix in (".yaml", ".yml")
        if is_file and not Path(name).is_file():
            raise UserError(f"{path_text(name)}: no such file")
        manager = TaskManager(include_path=include, include_defaults=not is_file)
        if not is_file and name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=1)
            raise UserError(f"lm-eval has no task {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        random.seed(SEED)
        np.random.seed(OTHER_SEED)
        try:
            loaded = manager.load([name])
        except Exception as error:  # of YAML, of the hub, of the data's format: each library has its own
            raise UserError(f"lm-eval, {path_text(name)}: {' '.join(str(error).split())[:300]}") from None
        for task in loaded["tasks"].values():
            if getattr(task, "UNSAFE_CODE", False):
                raise UserError(
                    f"lm-eval, {path_text(name)}: the task runs code that the model writes; that is refused"
                )
            own = task.get_config("num_fewshot")
            # as `simple_evaluate` does: a task that says 0 means it
            if own is None or (shots is not None and own != 0):
                task.set_config(key="num_fewshot", value=shots or 0)
            task.set_fewshot_seed(seed=seed)
        return HarnessTask(name, loaded, limit)

    def run(self, model: LanguageModel) -> Result:
        lm = Harness(model)
        found = evaluator.evaluate(
            lm, self.loaded, limit=self.limit, bootstrap_iters=RESAMPLES, log_samples=False, verbosity=None
        )
        kept = {name: found[name] for name in ("results", "groups", "versions", "n-shot", "n-samples") if name in found}
        kept = json.loads(json.dumps(kept, default=handle_non_serializable))
        rows = kept["results"] | kept.get("groups", {})
        figures = {key: figure for task, values in rows.items() for key, figure in _figures(task, values)}
        examples = sum(counts["effective"] for counts in kept["n-samples"].values())
        protocol = {
            "scored_by": f"lm-eval {version('lm_eval')}, {RESAMPLES} resamples for errors of what is no mean",
            "shots": ", ".join(f"{task} {shots}" for task, shots in kept["n-shot"].items()),
            "limit": self.limit,
            **protocol_of(model, lm.cut),
        }
        return Result(f"lm-eval:{self.name}", examples, protocol, figures, extra={"lm_eval": kept})


def _figures(task: str, values: dict):
    """(name, figure) from "acc,none": 0.5, "acc_stderr,none": 0.1, ..."""
    for key, value in values.items():
        metric, comma, filtered = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = values.get(f"{metric}_stderr,{filtered}")
            name = f"{task}: {metric}" + ("" if filtered == "none" else f" ({filtered})")
            yield name, Figure(value, error if isinstance(error, int | float) else None)
