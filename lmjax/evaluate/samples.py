"""What a run shows along the way: text that it writes, or what it makes of some held-out records."""

from collections.abc import Callable
from itertools import islice

from lmjax.data.mixture import parts
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
    records = list(islice(held_out_records(experiment), SHOWN))
    labeller = Labeller(experiment, tokenizer)
    return lambda params: "\n".join(labelled(labeller, params, records))


def held_out_records(experiment: Experiment):
    """All of them, read again."""
    for source, _ in parts(experiment.data.source):
        yield from (record for split, record in source.split_records() if split == "held_out")


def labelled(labeller: Labeller, params, records: list[Record]):
    """Each record's text, its label, and the probability that the model gives to it."""
    task = labeller.experiment.task
    for record, p_C in zip(records, labeller(params, records), strict=True):
        best = int(p_C.argmax())
        text = " | ".join(task.texts(record))[:CHARACTERS]
        yield f"{text!r} is {task.labels[task.number(record)]}; predicted {task.labels[best]} ({p_C[best]:.2f})"
