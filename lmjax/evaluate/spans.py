"""The answers that a trained model finds in the contexts of questions."""

import numpy as np

from lmjax.compilation import program
from lmjax.data.sources import Record
from lmjax.evaluate.outputs import CHARACTERS, of_examples, unscored
from lmjax.experiment import Experiment
from lmjax.models.config import ModelConfig
from lmjax.tasks.answer_metrics import AnswerFigures, answer_figures
from lmjax.tasks.span_qa import Asked, SpanQA
from lmjax.tokenizers import Tokenizer


class SpanFinder:
    """`predictors.Predictor` of the task SpanQA, for rows of the experiment's length."""

    def __init__(self, experiment: Experiment, tokenizer: Tokenizer):
        self.experiment, self.tokenizer = experiment, tokenizer
        self._run = program(_logits, experiment.task, experiment.model)

    def __call__(self, params, records: list[Record]) -> list[dict]:
        """As `best_answer`, with the record's `id` where it has one."""
        task, length = self.experiment.task, self.experiment.length
        asked = [task.asked(record, self.tokenizer, length) for record in records]
        examples = [unscored(ids, types) for one in asked for ids, types in one.windows]
        logits = iter(of_examples(self.experiment, self._run, params, examples))
        names = [{"id": record.fields["id"]} if "id" in record.fields else {} for record in records]
        return [
            name | best_answer(task, one, [next(logits) for _ in one.windows])
            for name, one in zip(names, asked, strict=True)
        ]

    def truth(self, records: list[Record]) -> list[list[str]]:
        """The answers of each. Raises UserError where a record has none, or one that is not in its context."""
        return [[answer.text for answer in self.experiment.task.answers_of(record)] for record in records]

    def figures(self, truth: list[list[str]], predictions: list[dict]) -> AnswerFigures:
        return answer_figures([prediction["answer"] for prediction in predictions], truth)

    def told(self, record: Record, prediction: dict) -> str:
        """The question, what was found and how sure that is, and the record's own answer."""
        task = self.experiment.task
        true = next((answer.text for answer in task.answers_of(record)), "")
        question = record.text(task.question)[:CHARACTERS]
        return f"{question!r}: {prediction['answer']!r} ({prediction['probability']:.2f}); expected {true!r}"


def best_answer(task: SpanQA, asked: Asked, logits: list[np.ndarray]) -> dict:
    """answer: the text of the best span over all windows, by the sum of the logits of its ends; start: its first
    character in the context; probability: its share by softmax over all spans that could have been chosen. "" and
    None where no answer is the better one (`SpanQA.null_threshold`). As in run_squad.py a span counts in the window
    in which its first token stands furthest from both edges. logits: (T, 2) of each window."""
    best, log_z = (-np.inf, 0, 0), -np.inf
    home_S = _homes(asked)
    for window, logits_TC in enumerate(logits):
        here = asked.tokens(window)
        size = here.stop - here.start
        first_S, last_S = logits_TC[asked.before : asked.before + size].astype(np.float64).T
        first_S = np.where(home_S[here] == window, first_S, -np.inf)
        for more in range(min(task.longest_answer, size)):
            scores_S = first_S[: size - more] + last_S[more:]
            at = int(scores_S.argmax())
            best = max(best, (scores_S[at], here.start + at, here.start + at + more))
            log_z = np.logaddexp(log_z, np.logaddexp.reduce(scores_S))
    score, first, last = best
    if task.null_threshold is not None:
        null = min(float(logits_TC[0].astype(np.float64).sum()) for logits_TC in logits)
        log_z = np.logaddexp(log_z, null)
        if null - score > task.null_threshold:
            return {"answer": "", "probability": float(np.exp(null - log_z)), "start": None}
    start, end = int(asked.spans_S2[first, 0]), int(asked.spans_S2[last, 1])
    found = asked.context[start:end]
    start += len(found) - len(found.lstrip())
    return {"answer": found.strip(), "probability": float(np.exp(score - log_z)), "start": start}


def _homes(asked: Asked) -> np.ndarray:
    """For each token of the context the window that has most of its surroundings, on the side where it has less; a
    hundredth of the window's size decides between equals (run_squad.py, `_check_is_max_context`)."""
    token_S = np.arange(len(asked.spans_S2))
    scores_WS = []
    for window in range(len(asked.windows)):
        here = asked.tokens(window)
        before_S, after_S = token_S - here.start, here.stop - 1 - token_S
        seen_S = np.minimum(before_S, after_S) + 0.01 * (here.stop - here.start)
        scores_WS.append(np.where((before_S >= 0) & (after_S >= 0), seen_S, -np.inf))
    return np.argmax(scores_WS, axis=0)


def _logits(task: SpanQA, cfg: ModelConfig, params, batch):
    return task.logits(cfg, params, batch)
