"""What a model puts for the hidden tokens of a text."""

import numpy as np

from lmjax.compilation import program
from lmjax.data.batches import Rows
from lmjax.evaluate.held_out import SEED
from lmjax.experiment import Experiment
from lmjax.models.config import ModelConfig
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.pieces import filled

SHOWN = 128


class Filler:
    """Compiled once; call it with a model's parameters. The first window of what a run is evaluated on, up to SHOWN
    tokens of it, with the tokens hidden that are hidden there too."""

    def __init__(self, experiment: Experiment, tokenizer: Tokenizer, read: Rows):
        self.tokenizer = tokenizer
        task = experiment.task
        self.batch = task.change(tokenizer, SEED)(next(iter(read.in_order(1))), np.arange(1))
        self._run = program(_guesses, tokenizer.vocab_size, task, experiment.model)

    def __call__(self, params) -> str:
        """The text with every hidden token in brackets; where the most probable one is another, as [other, not own]."""
        guesses_T = np.asarray(self._run(params, self.batch))[0, :SHOWN]
        places = np.flatnonzero(self.batch.weights_BT[0, :SHOWN])
        own_T = self.batch.targets_BT[0, :SHOWN][self.batch.segments_BT[0, :SHOWN] > 0]
        return filled(self.tokenizer, own_T, places, guesses_T[places], ", not ")


def _guesses(known: int, task: MaskedLM, cfg: ModelConfig, params, batch):
    return task.guesses(cfg, params, batch, known)
