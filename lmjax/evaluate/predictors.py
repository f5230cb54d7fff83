"""What a trained model makes of records, by its task: predictions as JSON objects, and how good they are."""

from typing import Protocol

from lmjax.data.sources import Record
from lmjax.evaluate.answers import Answerer
from lmjax.evaluate.labels import Labeller
from lmjax.evaluate.preferences import Chooser
from lmjax.evaluate.spans import SpanFinder
from lmjax.evaluate.texts import Writer
from lmjax.experiment import Experiment
from lmjax.tasks.chat import Chat
from lmjax.tasks.classification import Classification
from lmjax.tasks.preferences import Preferences
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.tasks.span_qa import SpanQA
from lmjax.tokenizers import Tokenizer


class Figures(Protocol):
    """How good predictions are; a dataclass."""

    def metrics(self) -> dict[str, float]:
        """What metrics.jsonl has of it, by name."""

    def lines(self) -> list[str]:
        """As a user reads it."""


class Predictor(Protocol):
    """Compiled once; call it with a model's parameters and records."""

    def __call__(self, params, records: list[Record]) -> list[dict]:
        """A JSON object for each record; what a record has of the answer is not looked at. Raises UserError where a
        record lacks what is read, or is too long."""

    def truth(self, records: list[Record]) -> list:
        """What would be right for each. Raises UserError where a record lacks it."""

    def figures(self, truth: list, predictions: list[dict]) -> Figures:
        """Of predictions beside what is right."""

    def told(self, record: Record, prediction: dict) -> str:
        """A record with its answer and the prediction, on one line."""


def predictor(experiment: Experiment, tokenizer: Tokenizer) -> Predictor:
    """Of the experiment's task, one on records."""
    kinds = {Chat: Answerer, Classification: Labeller, Preferences: Chooser, Seq2Seq: Writer, SpanQA: SpanFinder}
    return kinds[type(experiment.task)](experiment, tokenizer)
