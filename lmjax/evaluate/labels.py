"""The labels that a trained model gives to records."""

import jax
import numpy as np

from lmjax.compilation import fast_jit
from lmjax.data.packing import Example, PackedRows
from lmjax.data.sources import Record
from lmjax.experiment import Experiment
from lmjax.tasks.label_metrics import LabelFigures, label_figures
from lmjax.tokenizers import Tokenizer

CHARACTERS = 200


class Labeller:
    """`predictors.Predictor` of the task Classification, for rows of the experiment's length."""

    def __init__(self, experiment: Experiment, tokenizer: Tokenizer):
        self.experiment, self.tokenizer = experiment, tokenizer
        task, cfg = experiment.task, experiment.model
        self._run = fast_jit(lambda params, batch: jax.nn.log_softmax(task.logits(cfg, params, batch)))

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
        task, length = self.experiment.task, self.experiment.length
        examples = []
        for record in records:
            ids, types = task.tokens(record, self.tokenizer, length)
            examples.append(Example(ids, ids, np.ones(len(ids), np.float32), types))
        rows = PackedRows(examples, length=length, source_length=length)
        row_R, start_R = rows.places()
        place_R = start_R + [task.place(self.experiment.model, len(example.tokens)) for example in examples]
        out_RC, size = np.zeros((len(records), task.outputs)), self.experiment.microbatch_size
        for index, batch in enumerate(rows.in_order(size)):
            log_p_BTC = np.asarray(self._run(params, batch))
            here = np.flatnonzero(row_R // size == index)
            out_RC[here] = np.exp(log_p_BTC[row_R[here] % size, place_R[here]], dtype=np.float64)
        return out_RC

    def figures(self, records: list[Record], predictions: list[dict]) -> LabelFigures:
        """Raises UserError where a record's label is missing or unknown."""
        task = self.experiment.task
        true = [task.number(record) for record in records]
        predicted = [task.labels.index(prediction["label"]) for prediction in predictions]
        return label_figures(task.labels, np.array(true), np.array(predicted))

    def told(self, record: Record, prediction: dict) -> str:
        """The text, its label, and the probability that the model gives to its own."""
        task, label = self.experiment.task, prediction["label"]
        text = " | ".join(task.texts(record))[:CHARACTERS]
        true = task.labels[task.number(record)]
        return f"{text!r} is {true}; predicted {label} ({prediction['probabilities'][label]:.2f})"
