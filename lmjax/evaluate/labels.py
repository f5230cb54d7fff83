"""The labels that a trained model gives to records."""

from dataclasses import replace

import jax
import numpy as np

from lmjax.compilation import program
from lmjax.data.sources import Record
from lmjax.evaluate.calibration import Scaling, judge, of_predictions, task_of_labels
from lmjax.evaluate.outputs import CHARACTERS, of_examples, unscored
from lmjax.experiment import Experiment
from lmjax.models.config import ModelConfig
from lmjax.tasks.calibration_metrics import calibration
from lmjax.tasks.classification import Classification
from lmjax.tasks.label_metrics import LabelFigures, label_figures
from lmjax.tokenizers import Tokenizer


class Labeller:
    """`predictors.Predictor` of the task Classification, for rows of the experiment's length."""

    def __init__(self, experiment: Experiment, tokenizer: Tokenizer):
        self.experiment, self.tokenizer = experiment, tokenizer
        self._run = program(_log_p, experiment.task, experiment.model)

    def __call__(self, params, records: list[Record]) -> list[dict]:
        """The most probable label, and the probabilities of all."""
        labels = self.experiment.task.labels
        return [
            {"label": labels[int(p_C.argmax())], "probabilities": dict(zip(labels, p_C.tolist(), strict=True))}
            for p_C in self.probabilities(params, records)
        ]

    def probabilities(self, params, records: list[Record]) -> np.ndarray:
        """(R, C): the probability of each label for each record. Raises UserError where a text is missing, empty or too
        long."""
        task, cfg, length = self.experiment.task, self.experiment.model, self.experiment.length
        examples = [unscored(*task.tokens(record, self.tokenizer, length)) for record in records]
        log_p = of_examples(self.experiment, self._run, params, examples)
        log_p_RC = np.stack([log_p_TC[task.place(cfg, len(log_p_TC))] for log_p_TC in log_p])
        return np.exp(log_p_RC, dtype=np.float64)

    def truth(self, records: list[Record]) -> list[int]:
        """The number of each label. Raises UserError where one is missing or unknown."""
        return [self.experiment.task.number(record) for record in records]

    def figures(self, truth: list[int], predictions: list[dict]) -> LabelFigures:
        (log_p_NC,) = of_predictions(predictions, truth).log_p.values()
        return replace(self._figures(truth, predictions), calibrations=(calibration(log_p_NC, np.array(truth)),))

    def _figures(self, truth: list[int], predictions: list[dict]) -> LabelFigures:
        """Of the labels alone."""
        labels = self.experiment.task.labels
        predicted = [labels.index(prediction["label"]) for prediction in predictions]
        return label_figures(labels, np.array(truth), np.array(predicted))

    def judged(
        self, params, records: list[Record], fit_on: list[Record], scaling: Scaling, data: str
    ) -> tuple[LabelFigures, str | None]:
        """(the figures of records, what to say of the temperature), which is fitted on others where there are some.
        data: where they come from, in words. Raises UserError before anything is computed where a label is missing."""
        truths = [self.truth(part) for part in (records, fit_on)]
        predictions = self(params, records)
        reported = of_predictions(predictions, truths[0])
        others = of_predictions(self(params, fit_on), truths[1]) if fit_on else None
        task, examples = task_of_labels(self.experiment.task.labels), [record.fields for record in fit_on]
        judged = judge(reported, others, examples, task, scaling, data)
        calibrations = tuple(one for _, one in judged.calibrations)
        return replace(self._figures(truths[0], predictions), calibrations=calibrations), judged.said

    def told(self, record: Record, prediction: dict) -> str:
        """The text, its label, and the probability that the model gives to its own."""
        task, label = self.experiment.task, prediction["label"]
        text = " | ".join(task.texts(record))[:CHARACTERS]
        true = task.labels[task.number(record)]
        return f"{text!r} is {true}; predicted {label} ({prediction['probabilities'][label]:.2f})"


def _log_p(task: Classification, cfg: ModelConfig, params, batch):
    return jax.nn.log_softmax(task.logits(cfg, params, batch))
