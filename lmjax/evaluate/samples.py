"""What a run shows along the way: text that it writes, or what it makes of some held-out records."""

from collections.abc import Callable
from itertools import islice

from lmjax.data.mixture import records_of
from lmjax.data.sources import Record
from lmjax.evaluate.labels import Labeller
from lmjax.experiment import Experiment
from lmjax.generate.text import sample
from lmjax.tokenizers import Tokenizer

SHOWN = 3
CHARACTERS = 200


def sampler(experiment: Experiment, tokenizer: Tokenizer) -> Callable[[dict], str]:
    """params -> a text for samples.txt."""
    if not experiment.task.on_records:
        return lambda params: sample(experiment, params, tokenizer)
    records = list(islice(records_of(experiment.data.source, "held_out"), SHOWN))
    labeller = Labeller(experiment, tokenizer)
    return lambda params: "\n".join(labelled(labeller, params, records))


def labelled(labeller: Labeller, params, records: list[Record]):
    """Each record's text, its label, and the probability that the model gives to it."""
    task = labeller.experiment.task
    for record, p_C in zip(records, labeller(params, records), strict=True):
        best = int(p_C.argmax())
        text = " | ".join(task.texts(record))[:CHARACTERS]
        yield f"{text!r} is {task.labels[task.number(record)]}; predicted {task.labels[best]} ({p_C[best]:.2f})"
