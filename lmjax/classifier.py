"""A model of labels to call from Python: a text or a pair of texts in, the probability of each label out."""

from dataclasses import replace

from lmjax.data.sources import Record
from lmjax.errors import UserError
from lmjax.evaluate.labels import Labeller
from lmjax.loaded import Loaded, needed_tokenizer

# one text, or a pair of them
Labelled = str | tuple[str, str]


class Classifier:
    """labels: their names, in the order of the model's outputs. A model of one text reads pairs too, as its tokenizer
    puts two texts together."""

    def __init__(self, loaded: Loaded, params: dict):
        self.labels: tuple[str, ...] = loaded.experiment.task.labels
        self.cfg, self.params, self.tokenizer, self.path = (
            loaded.experiment.model,
            params,
            loaded.tokenizer,
            loaded.path,
        )
        self._loaded = loaded
        self._readers: dict[bool, Labeller] = {}

    def __call__(self, text: Labelled | list[Labelled]) -> dict | list[dict]:
        """{"label": the most probable one, "probabilities": of all by name}, a list of them for a list. Raises
        UserError where there is none, one is empty, or longer than a row of the model's experiment."""
        texts = text if isinstance(text, list) else [text]
        if not texts:
            raise UserError("the list of texts is empty")
        pairs = {isinstance(one, tuple) for one in texts}
        if len(pairs) > 1:
            raise UserError("expected texts or pairs of texts, not both in one list")
        found = self._reader(pairs == {True})(self.params, list(map(_record, range(len(texts)), texts)))
        return found if isinstance(text, list) else found[0]

    def _reader(self, pairs: bool) -> Labeller:
        """Compiled once each."""
        if pairs not in self._readers:
            experiment = self._loaded.experiment
            task = replace(experiment.task, text="text", second="second" if pairs else None)
            self._readers[pairs] = Labeller(replace(experiment, task=task), needed_tokenizer(self._loaded))
        return self._readers[pairs]


def _record(number: int, text: Labelled) -> Record:
    first, second = text if isinstance(text, tuple) else (text, None)
    return Record(str(number), f"text {number}", {"text": first, "second": second})
