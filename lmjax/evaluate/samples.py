"""What a run shows along the way: text that it writes, what it puts for hidden tokens, or what it makes of some
held-out records."""

from lmjax.data.batches import Rows
from lmjax.data.sources import Record
from lmjax.evaluate.masked import Filler
from lmjax.evaluate.predictors import predictor
from lmjax.experiment import Experiment
from lmjax.generate.text import sample
from lmjax.tasks.chat import Chat
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tokenizers import Tokenizer

SHOWN = 3


class Samples:
    """Of a run, compiled once. read: what it is evaluated on. records: those that it is of, for a task on records."""

    def __init__(self, experiment: Experiment, tokenizer: Tokenizer, read: Rows, records: list[Record]):
        self.experiment, self.tokenizer = experiment, tokenizer
        self._predictor, self._records = None, []
        self._filler = Filler(experiment, tokenizer, read) if isinstance(experiment.task, MaskedLM) else None
        if experiment.task.on_records:
            self._predictor = predictor(experiment, tokenizer)
            self._records = records[: max(SHOWN, experiment.score_records)]
        if isinstance(experiment.task, Chat):
            self._records = [experiment.task.answered(record) for record in self._records]

    def text(self, params) -> str:
        """For samples.txt."""
        if self._filler is not None:
            return self._filler(params)
        if self._predictor is None:
            return sample(self.experiment, params, self.tokenizer)
        records = self._records[:SHOWN]
        return "\n".join(map(self._predictor.told, records, self._predictor(params, records)))

    def scores(self, params) -> dict[str, float]:
        """The figures of the first `score_records` held-out records; nothing where that is 0."""
        if not self.experiment.score_records:
            return {}
        records = self._records[: self.experiment.score_records]
        return self._predictor.figures(self._predictor.truth(records), self._predictor(params, records)).metrics()
