"""The likelihood of a held-out text, exactly: every token once, sums first, one division at the end.

Protocol: the text is read in windows of the model's own context that do not overlap, so a token is predicted
from at most `context` tokens before it in its window. The first token of a text has nothing before it and is not
scored, unless the tokenizer's policy puts BOS there.
"""

import math
from dataclasses import asdict, dataclass

import jax
import numpy as np

from lmjax.compilation import fast_jit
from lmjax.data.store import TokenStream
from lmjax.data.windows import count, held_out_batches
from lmjax.errors import UserError
from lmjax.experiment import Experiment
from lmjax.sharding import local_rows, place_batch


@dataclass(frozen=True)
class HeldOut:
    """nats: sum over the scored tokens. tokens: how many these are. text_bytes: UTF-8 bytes of the whole text."""

    nats: float
    tokens: int
    text_bytes: int
    protocol: str

    @property
    def eval_loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.eval_loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """All bits over all bytes of the text: comparable between tokenizers, and with a file compressor."""
        return self.nats / math.log(2) / self.text_bytes

    def metrics(self) -> dict[str, float]:
        return {"eval_loss": self.eval_loss, "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}

    def as_dict(self) -> dict:
        return self.metrics() | asdict(self)


def compile_loss(experiment: Experiment):
    """(params, batch) -> Loss, jitted: the plain negative log-likelihood."""
    return fast_jit(lambda params, batch: experiment.task.held_out_loss(experiment.model, params, batch))


def held_out(experiment: Experiment, loss_of, params, stream: TokenStream, mesh: jax.sharding.Mesh) -> HeldOut:
    """Score a stream; `loss_of` comes from `compile_loss`. Raises UserError where there is nothing to score."""
    length, apart = experiment.model.context, experiment.data.apart
    if count(stream, length) == 0 or stream.text_bytes == 0:
        raise UserError(f"the text to evaluate has {stream.size} token(s); scoring needs at least 2, and some text")
    rows = experiment.microbatch_size
    batches = held_out_batches(stream, length, rows, apart=apart, part=local_rows(mesh, rows))
    # all batches are sent before the first result is asked for
    losses = [loss_of(params, place_batch(batch, mesh, rows)) for batch in batches]
    losses = jax.device_get(losses)
    # float64: a float32 sum of a million losses loses the fourth digit
    nats = float(np.sum([loss.total for loss in losses], dtype=np.float64))
    tokens = round(float(np.sum([loss.weight for loss in losses], dtype=np.float64)))
    if tokens == 0:
        raise UserError(f"the text to evaluate has {stream.size} tokens, and none that follows another in its document")
    return HeldOut(nats, tokens, stream.text_bytes, protocol(length, stream, apart))


def protocol(length: int, stream: TokenStream, apart: bool) -> str:
    start = f"first token of {'each document' if apart else 'the text'} not scored"
    if stream.bos is not None:
        start = "BOS before each document, not scored"
    return f"context {length}, stride {length} (no overlap), {start}, documents {'apart' if apart else 'joined'}"
