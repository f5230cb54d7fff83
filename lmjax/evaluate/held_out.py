"""The likelihood of what is held out, exactly: every token or label once, sums first, one division at the end.

Protocol of a text: it is read in windows of the length that training has, which do not overlap, so a token is predicted
from at most so many tokens before it in its window. The first token of a text has nothing before it and is not
scored, unless the tokenizer's policy puts BOS there. Of a task that hides tokens of windows those are scored, and which
these are the window's number decides: the same ones at every evaluation, of every run.
"""

import math
from dataclasses import asdict, dataclass

import jax
import numpy as np

from lmjax.compilation import program
from lmjax.data.batches import Rows
from lmjax.errors import UserError
from lmjax.experiment import Experiment
from lmjax.models.config import ModelConfig
from lmjax.sharding import local_rows, place_batch
from lmjax.tasks.sparse_autoencoder import SparseAutoencoder
from lmjax.tokenizers import Tokenizer

# of what a task changes in rows that are evaluated; not the experiment's, so that runs are compared on the same
SEED = 0


@dataclass(frozen=True)
class HeldOut:
    """nats: sum over what is scored. tokens: how many tokens, or labels, these are. text_bytes: UTF-8 bytes of the
    whole text, where all of it is scored. correct: how many predictions are right, where the task counts them. figures:
    sums of what else it tells of them. labels: whether labels or pairs are predicted, of which nobody asks the
    perplexity. summary: what a task that predicts nothing tells in place of all that."""

    nats: float
    tokens: int
    text_bytes: int | None
    protocol: str
    correct: int | None = None
    figures: dict[str, float] | None = None
    labels: bool = False
    summary: dict[str, float] | None = None

    @property
    def eval_loss(self) -> float:
        """Nats a token, or a label."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.eval_loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """All bits over all bytes of the text: comparable between tokenizers, and with a file compressor."""
        return self.nats / math.log(2) / self.text_bytes

    @property
    def accuracy(self) -> float:
        return self.correct / self.tokens

    def metrics(self) -> dict[str, float]:
        figures = {"eval_loss": self.eval_loss}
        if self.summary is not None:
            return figures | self.summary
        if self.correct is not None:
            more = {name: value / self.tokens for name, value in (self.figures or {}).items()}
            figures |= {"accuracy": self.accuracy} | more
        if not self.labels:
            figures["perplexity"] = self.perplexity
        return figures if self.text_bytes is None else figures | {"bits_per_byte": self.bits_per_byte}

    def as_dict(self) -> dict:
        figures = {name: value for name, value in asdict(self).items() if value is not None and name != "labels"}
        return self.metrics() | figures


def compile_loss(experiment: Experiment):
    """(params, batch) -> Loss, jitted, once for a task and a model: the plain negative log-likelihood."""
    return program(_loss, experiment.task, experiment.model)


def _loss(task, cfg: ModelConfig, params, batch):
    return task.held_out_loss(cfg, params, batch)


def held_out(
    experiment: Experiment, loss_of, params, read: Rows, mesh: jax.sharding.Mesh, tokenizer: Tokenizer
) -> HeldOut:
    """Score all rows, as the task changes them; `loss_of` comes from `compile_loss`. Raises UserError where there is
    nothing to score."""
    if reason := read.obstacle():
        raise UserError(reason)
    rows = experiment.microbatch_size
    part, change = local_rows(mesh, rows), experiment.task.change(tokenizer, SEED)
    # all batches are sent before the first result is asked for
    losses = []
    for index, batch in enumerate(read.in_order(rows, part)):
        batch = batch if change is None else change(batch, index * rows + part)
        losses.append(loss_of(params, place_batch(batch, mesh, rows)))
    losses = jax.device_get(losses)
    # float64: a float32 sum of a million losses loses the fourth digit
    nats = float(np.sum([loss.total for loss in losses], dtype=np.float64))
    tokens = round(float(np.sum([loss.weight for loss in losses], dtype=np.float64)))
    if tokens == 0:
        raise UserError("what is to be evaluated has no token that follows another in its document")
    correct = figures = None
    if losses[0].correct is not None:
        correct = round(float(np.sum([loss.correct for loss in losses], dtype=np.float64)))
    if losses[0].figures is not None:
        figures = {
            name: np.sum([loss.figures[name] for loss in losses], axis=0, dtype=np.float64)
            for name in losses[0].figures
        }
        if isinstance(experiment.task, SparseAutoencoder):
            return HeldOut(nats, tokens, None, read.protocol(), summary=experiment.task.summary(figures))
        figures = {name: float(value) for name, value in figures.items()}
    labels = experiment.task.outputs > 0 or figures is not None
    return HeldOut(nats, tokens, read.text_bytes, read.protocol(), correct, figures, labels)
