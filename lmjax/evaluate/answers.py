"""The answers that a trained model writes in conversations."""

import numpy as np

from lmjax.data.sources import Record
from lmjax.errors import at
from lmjax.evaluate.outputs import CHARACTERS
from lmjax.evaluate.writing import WritingModel, write_until
from lmjax.experiment import Experiment
from lmjax.generate.sampling import choice
from lmjax.generate.text import prompt_ids
from lmjax.tasks.answer_metrics import AnswerFigures, answer_figures
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.chat import chat_ids, stops_of


class Answerer:
    """`predictors.Predictor` of the task Chat: each answer is written greedily, up to the end of the turn or to the
    experiment's sampling.max_new_tokens."""

    def __init__(self, experiment: Experiment, tokenizer: Tokenizer):
        self.experiment, self.tokenizer = experiment, tokenizer

    def __call__(self, params, records: list[Record]) -> list[dict]:
        """The last answer of each record. A prompt that leaves no room for it loses its beginning."""
        experiment, tokenizer = self.experiment, self.tokenizer
        room = min(experiment.sampling.max_new_tokens, experiment.model.context // 2)
        ids = [self._prompt(record) for record in records]
        ends = tokenizer.policy.stops if tokenizer.chat is None else stops_of(tokenizer)
        writer = WritingModel(experiment.model, params, tokenizer)
        # a run has a bar of its own
        written = write_until(writer, ids, (), room, choice(), ends=ends, follow=lambda items, **_: items)
        return [{"answer": text} for text in written.texts]

    def _prompt(self, record: Record) -> np.ndarray:
        asked = self.experiment.task.asked(record)
        with at(record.where):
            return prompt_ids(asked, self.tokenizer) if isinstance(asked, str) else chat_ids(self.tokenizer, asked)

    def truth(self, records: list[Record]) -> list[list[str]]:
        """The last answer of each. Raises UserError where a record's last message is none."""
        return [[self.experiment.task.answer(record)] for record in records]

    def figures(self, truth: list[list[str]], predictions: list[dict]) -> AnswerFigures:
        return answer_figures([prediction["answer"] for prediction in predictions], truth)

    def told(self, record: Record, prediction: dict) -> str:
        """The end of what was asked, and the answer."""
        asked = self.experiment.task.asked(record)
        last = asked if isinstance(asked, str) else asked[-1]["content"] if asked else ""
        return f"{last[-CHARACTERS:]!r} => {prediction['answer']!r}"
