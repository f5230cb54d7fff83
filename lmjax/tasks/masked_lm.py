"""Masked language modelling: tokens of a text are hidden and told from all the others (BERT, arXiv:1810.04805, sections
3.1 and A.1)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.batches import Change
from lmjax.errors import UserError
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.sharding import constrain, ways
from lmjax.tasks.loss import Loss, chunk_of, vocabulary_loss, with_routing
from lmjax.tokenizers import Tokenizer

# sets the draws of masks apart from all others that the same seed decides
STREAM = 0x6D61736B
# so many places together are shared by chunks and devices
TOGETHER = 4


@dataclass(frozen=True, kw_only=True)
class MaskedLM:
    """Predict tokens of a row from what is left of it.

    share: of a row's tokens, those that are predicted: as many as the share comes to, rounded, at least one, drawn
    anew for every row that is read. masked, random: of these, how many in the mean the model reads as the mask, and
    as another token, drawn evenly; the rest it reads as they are. Control tokens are never among them.
    """

    share: float = 0.15
    masked: float = 0.8
    random: float = 0.1

    on_records: ClassVar[bool] = False
    ahead: ClassVar[int] = 0
    has_types: ClassVar[bool] = False
    outputs: ClassVar[int] = 0

    def __post_init__(self):
        if not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}; expected a number between 0 and 1")
        # 0.9 + 0.1 is a little over 1 in other orders of such sums
        if self.masked < 0 or self.random < 0 or self.masked + self.random > 1 + 1e-9:
            raise ValueError(f"masked {self.masked}, random {self.random}; expected shares that make up 1 at most")

    def check(self, cfg: ModelConfig) -> None:
        """Raises ValueError where the model cannot do this task."""
        if cfg.causal or cfg.encoder_layers:
            raise ValueError("task MaskedLM reads both sides of a token; expected an encoder, model.causal False")

    def predicted(self, length: int) -> int:
        """How many of so many tokens of a row are predicted."""
        return min(length, max(1, round(self.share * length)))

    def places(self, length: int) -> int:
        """Room for the predictions of a row, on the mesh in use."""
        together = TOGETHER * ways("length")
        return min(length, -(-self.predicted(length) // together) * together)

    def change(self, tokenizer: Tokenizer, seed: int) -> Change:
        """Hides tokens of batches whose targets are the tokens themselves; what weighs something may be hidden. The
        result weighs what is predicted. A row's mask follows from its tokens, its number and the seed. Raises UserError
        where the tokenizer has no mask."""
        mask = tokenizer.policy.mask
        if mask is None:
            raise UserError(
                "task MaskedLM: the tokenizer has no mask token; tokenizer.mask asks for one, or names it (HuggingFace)"
            )
        controls = np.array(sorted(tokenizer.controls()), np.int32)
        others = np.setdiff1d(np.arange(tokenizer.vocab_size, dtype=np.int32), controls)

        def changed(batch: Batch, rows_B: np.ndarray) -> Batch:
            tokens_BT, weights_BT = batch.tokens_BT.copy(), np.zeros_like(batch.weights_BT)
            may_BT = (batch.weights_BT > 0) & ~np.isin(tokens_BT, controls)
            for b, row in enumerate(rows_B):
                if may_BT[b].any():
                    draws = np.random.default_rng([STREAM, seed, int(row)])
                    places, read = self._drawn(tokens_BT[b], np.flatnonzero(may_BT[b]), draws, mask, others)
                    tokens_BT[b, places], weights_BT[b, places] = read, 1
            return replace(batch, tokens_BT=tokens_BT, weights_BT=weights_BT)

        return changed

    def _drawn(self, tokens_T, may, draws: np.random.Generator, mask: int, others) -> tuple[np.ndarray, np.ndarray]:
        """(the places of a row that are predicted, what the model reads there)."""
        places = draws.permutation(may)[: self.predicted(len(may))]
        kind, another = draws.random(len(places)), draws.choice(others, len(places))
        read = np.where(kind < self.masked + self.random, another, tokens_T[places])
        return places, np.where(kind < self.masked, mask, read)

    def training_loss(self, cfg: ModelConfig, params, batch: Batch, dropout_key) -> Loss:
        """Nats of the tokens that are predicted; experts' losses as those of CausalLM."""
        hidden_BTD, routing = transformer.trained(
            cfg, params, batch.tokens_BT, batch.positions_BT, batch.segments_BT,
            dropout_key=dropout_key if cfg.dropout else None,
        )  # fmt: skip
        return with_routing(self._loss(cfg, params, batch, hidden_BTD), routing, cfg.feedforward)

    def held_out_loss(self, cfg: ModelConfig, params, batch: Batch) -> Loss:
        """The same without dropout, and how many tokens are the most probable ones."""
        hidden_BTD, _ = transformer.hidden(cfg, params, batch.tokens_BT, batch.positions_BT, batch.segments_BT)
        return self._loss(cfg, params, batch, hidden_BTD, count_correct=True)

    def guesses(self, cfg: ModelConfig, params, batch: Batch, known: int) -> jax.Array:
        """(B, T), the most probable token at every place. known: how many ids the tokenizer has."""
        hidden_BTD, _ = transformer.hidden(cfg, params, batch.tokens_BT, batch.positions_BT, batch.segments_BT)
        return jnp.argmax(transformer.masked_logits(cfg, params, hidden_BTD)[..., :known], axis=-1)

    def chunk(self, rows: int, length: int, vocab: int) -> int | None:
        """Of `places`, those whose logits exist at one time, in microbatches of so many rows on the mesh in use; None:
        all."""
        return chunk_of("auto", rows, self.places(length), vocab)

    def _loss(self, cfg: ModelConfig, params, batch: Batch, hidden_BTD, **kind) -> Loss:
        """The head and the unembedding see `places` of each row: those that count, and some of weight 0 to fill up."""
        rows, length = batch.targets_BT.shape
        at_BK = jnp.argsort(batch.weights_BT == 0, axis=1, stable=True)[:, : self.places(length)]
        targets_BK, weights_BK = (jnp.take_along_axis(x, at_BK, axis=1) for x in (batch.targets_BT, batch.weights_BT))
        hidden_BKD = constrain(jnp.take_along_axis(hidden_BTD, at_BK[..., None], axis=1), "batch", "length", "embed")
        x_BKD, bias_V = transformer.before_unembedding(cfg, params, hidden_BKD)
        return vocabulary_loss(
            x_BKD, transformer.unembedding(cfg, params), targets_BK, weights_BK, bias_V=bias_V,
            chunk=self.chunk(rows, length, cfg.vocab), cap=cfg.logit_cap, **kind,
        )  # fmt: skip
