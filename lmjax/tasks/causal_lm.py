"""Maximum likelihood of the next token: sum over t of log p(w_t | w_<t)."""

from dataclasses import dataclass
from typing import ClassVar

from lmjax.data.batch import Batch
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.tasks.loss import Chunk, Loss, check_loss, check_rows, chunk_of, vocabulary_loss, with_routing
from lmjax.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """What all tasks have that predict each token from those before it.

    loss_chunk: how many places of a row have their logits in memory at one time; None takes all; "auto" takes all where
    they are small, else as many as stay within `tasks.loss.LOGIT_BYTES` on each device.
    """

    loss_chunk: Chunk = "auto"

    on_records: ClassVar[bool] = False
    ahead: ClassVar[int] = 1
    has_types: ClassVar[bool] = False
    outputs: ClassVar[int] = 0

    def check(self, cfg: ModelConfig) -> None:
        """Raises ValueError where the model, with the length of a row as its context, cannot do this task."""
        if not cfg.causal:
            name = type(self).__name__
            raise ValueError(f"task {name} predicts a token from those before it; expected model.causal to be True")
        if cfg.encoder_layers:
            raise ValueError(f"task {type(self).__name__} reads one text; expected model.encoder_layers to be 0")
        check_rows(self.loss_chunk, cfg.context)

    def __post_init__(self):
        check_loss(chunk=self.loss_chunk)

    def change(self, tokenizer: Tokenizer, seed: int) -> None:
        """Batches are read as they are."""

    def predicted(self, length: int) -> int:
        """Of a row's places, those whose tokens' probabilities are computed."""
        return length

    def chunk(self, rows: int, length: int, vocab: int) -> int | None:
        """The places of a row at one time, in microbatches of so many rows on the mesh in use; None: all."""
        return chunk_of(self.loss_chunk, rows, length, vocab)


@dataclass(frozen=True, kw_only=True)
class CausalLM(NextToken):
    """Predict each token from those before it. label_smoothing, z_loss: see `tasks.loss.cross_entropy`; both only in
    training."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self):
        check_loss(self.label_smoothing, self.loss_chunk)
        if self.z_loss < 0:
            raise ValueError(f"z_loss is {self.z_loss}; expected 0 or more")

    def training_loss(self, cfg: ModelConfig, params, batch: Batch, dropout_key) -> Loss:
        """The objective: with dropout, smoothing and z-loss where they are asked for. The losses of experts' routers,
        times the target tokens of this microbatch, are beside it in `routed`."""
        hidden_BTD, routing = transformer.trained(
            cfg, params, batch.tokens_BT, batch.positions_BT, batch.segments_BT,
            dropout_key=dropout_key if cfg.dropout else None,
        )  # fmt: skip
        kind = {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss}
        return with_routing(self._loss(cfg, params, batch, hidden_BTD, **kind), routing, cfg.feedforward)

    def held_out_loss(self, cfg: ModelConfig, params, batch: Batch) -> Loss:
        """The plain negative log-likelihood, without dropout; experts are dropless."""
        hidden_BTD, _ = transformer.hidden(cfg, params, batch.tokens_BT, batch.positions_BT, batch.segments_BT)
        return self._loss(cfg, params, batch, hidden_BTD)

    def _loss(self, cfg: ModelConfig, params, batch: Batch, hidden_BTD, **kind) -> Loss:
        matrix_VD = transformer.unembedding(cfg, params)
        return vocabulary_loss(
            hidden_BTD, matrix_VD, batch.targets_BT, batch.weights_BT,
            chunk=self.chunk(*batch.targets_BT.shape, cfg.vocab), cap=cfg.logit_cap, **kind,
        )  # fmt: skip
