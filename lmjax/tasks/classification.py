"""One label for a text or a pair of texts: sentiment, topic, entailment."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.packing import Example
from lmjax.data.sources import Record
from lmjax.errors import UserError
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.tasks.loss import Loss, check_loss, cross_entropy, with_routing
from lmjax.tasks.segments import same_segment, segment_mean
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.pairs import encode_pair

Pooling = Literal["first", "last", "mean"]


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The probability of each label, a linear layer on one vector of the text.

    text, second, label: names of the fields; second: of the other text of a pair. labels: None takes those of the
    training records, sorted. pooling: which vector: that of the first token (BERT, section 4.1), of the last (GPT,
    section 3.2), or the mean of all; None: "last" of a causal model, else "first". too_long: what becomes of a text
    that is longer than a row: an error, or its beginning is read. token_dropout: with this probability training
    leaves out each token but the one at whose place the label is predicted (arXiv:1511.06349, section 3.1.2, and
    Iyyer et al. 2015, section 2.3: drawn anew at every step).
    """

    text: str = "text"
    second: str | None = None
    label: str = "label"
    labels: tuple[str, ...] | None = None
    pooling: Pooling | None = None
    too_long: Literal["error", "cut"] = "error"
    label_smoothing: float = 0.0
    token_dropout: float = 0.0

    on_records: ClassVar[bool] = True

    def __post_init__(self):
        check_loss(self.label_smoothing)
        if not 0 <= self.token_dropout < 1:
            raise ValueError(f"token_dropout is {self.token_dropout}; expected a number from 0 to below 1")
        if self.labels is not None and (len(set(self.labels)) != len(self.labels) or len(self.labels) < 2):
            raise ValueError(f"labels are {self.labels}; expected two or more different ones")

    def check(self, cfg: ModelConfig) -> None:
        """Raises ValueError where the model cannot do this task."""
        if cfg.encoder_layers:
            raise ValueError("task Classification reads one stack; expected model.encoder_layers to be 0")
        if self.pooling == "first" and cfg.causal:
            raise ValueError("task.pooling is first, and of a causal model the first token has seen no other")

    def predicted(self, length: int) -> int:
        """There are no probabilities of tokens."""
        return 0

    def chunk(self, rows: int, length: int, vocab: int) -> None:
        """All places of a row at one time: there are no logits over a vocabulary."""

    @property
    def outputs(self) -> int:
        """Of the model's head; 2 where the labels are not known yet."""
        return len(self.labels or "12")

    @property
    def has_types(self) -> bool:
        return self.second is not None

    @property
    def fields(self) -> tuple[str, ...]:
        """Of a record, what the model reads."""
        return (self.text,) if self.second is None else (self.text, self.second)

    def texts(self, record: Record) -> list[str]:
        """What a tokenizer may learn from."""
        return [record.text(name) for name in self.fields]

    def fitted(self, records: Iterable[Record]) -> "Classification":
        """With the labels of the training records. Raises UserError where one of those named has no record."""
        found = Counter(self._label(record) for record in records)
        if not found:
            raise UserError("data.source: nothing to train on; expected records with labels")
        if self.labels is None:
            if len(found) < 2:
                raise UserError(f"task.label: {self.label!r} has one value in the training data: {', '.join(found)}")
            return replace(self, labels=tuple(sorted(found)))
        if empty := [label for label in self.labels if label not in found]:
            raise UserError(f"task.labels: no training record is {', '.join(map(repr, empty))}")
        return self

    def _label(self, record: Record) -> str:
        value = record.field(self.label)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise UserError(f"{record.where}: {self.label!r} is {str(value)[:40]!r}; expected a text or a whole number")
        return str(value) if isinstance(value, int) else record.text(self.label)

    def encode(
        self, record: Record, tokenizer: Tokenizer, cfg: ModelConfig, length: int, source_length: int | None = None
    ) -> list[Example]:
        """One example. Raises UserError where the text is too long or empty, or its label unknown."""
        label = self.number(record)
        tokens, types = self.tokens(record, tokenizer, length)
        targets, weights = np.zeros(len(tokens), np.int32), np.zeros(len(tokens), np.float32)
        place = self.place(cfg, len(tokens))
        targets[place], weights[place] = label, 1
        return [Example(tokens, targets, weights, types)]

    def number(self, record: Record) -> int:
        """Of the record's label. Raises UserError where it is none of the labels."""
        label = self._label(record)
        if label not in self.labels:
            raise UserError(f"{record.where}: {label!r} is none of the labels {', '.join(self.labels)}")
        return self.labels.index(label)

    def tokens(self, record: Record, tokenizer: Tokenizer, length: int) -> tuple[np.ndarray, np.ndarray | None]:
        """(ids, types) of a record's text or pair. Raises UserError as `encode`."""
        texts = self.texts(record)
        for name, text in zip(self.fields, texts, strict=True):
            if not text.strip():
                raise UserError(f"{record.where}: {name!r} is empty")
        if self.second is None:
            ids, types = tokenizer.encode_document(texts[0]), None
        else:
            ids, types, _ = encode_pair(tokenizer, *texts)
        if not len(ids):
            raise UserError(f"{record.where}: the tokenizer has no token for {self.text!r}")
        if len(ids) > length and self.too_long == "error":
            raise UserError(
                f"{record.where}: {len(ids)} tokens; a row has {length} (task.too_long=cut reads the beginning)"
            )
        return ids[:length], None if types is None else types[:length]

    def place(self, cfg: ModelConfig, length: int) -> int:
        """Of a text with so many tokens, where its label is predicted."""
        return length - 1 if self.pooling_of(cfg) == "last" else 0

    def pooling_of(self, cfg: ModelConfig) -> Pooling:
        """Of this model."""
        return self.pooling or ("last" if cfg.causal else "first")

    def change(self, tokenizer: Tokenizer, seed: int) -> None:
        """Batches are read as they are."""

    def training_loss(self, cfg: ModelConfig, params, batch: Batch, dropout_key) -> Loss:
        """With dropout and smoothing where they are asked for; experts' losses as those of CausalLM."""
        # the masks of the model's own dropout must not be the same ones
        token_key, output_key = (jax.random.fold_in(dropout_key, i) for i in (1, 2))
        if self.token_dropout:
            batch = without_tokens(batch, self.token_dropout, token_key)
        hidden_BTD, routing = transformer.trained(
            cfg, params, batch.tokens_BT, batch.positions_BT, batch.segments_BT, types_BT=batch.types_BT,
            dropout_key=dropout_key if cfg.dropout else None,
        )  # fmt: skip
        logits_BTC = self._logits(cfg, params, batch, hidden_BTD, output_key if cfg.dropout else None)
        loss = cross_entropy(logits_BTC, batch.targets_BT, batch.weights_BT, label_smoothing=self.label_smoothing)
        return with_routing(loss, routing, cfg.feedforward)

    def held_out_loss(self, cfg: ModelConfig, params, batch: Batch) -> Loss:
        """The plain negative log-likelihood, and how many labels are the most probable ones."""
        logits_BTC = self.logits(cfg, params, batch)
        return cross_entropy(logits_BTC, batch.targets_BT, batch.weights_BT, count_correct=True)

    def logits(self, cfg: ModelConfig, params, batch: Batch) -> jax.Array:
        """(B, T, C); those that count stand at each text's `place`."""
        hidden_BTD, _ = transformer.hidden(
            cfg, params, batch.tokens_BT, batch.positions_BT, batch.segments_BT, types_BT=batch.types_BT
        )
        return self._logits(cfg, params, batch, hidden_BTD)

    def _logits(self, cfg: ModelConfig, params, batch: Batch, hidden_BTD, dropout_key=None) -> jax.Array:
        if self.pooling_of(cfg) == "mean":
            hidden_BTD = segment_mean(hidden_BTD, same_segment(batch.segments_BT))
        return transformer.outputs(cfg, params, hidden_BTD, dropout_key=dropout_key)


def without_tokens(batch: Batch, share: float, key: jax.Array) -> Batch:
    """A batch in which some tokens are padding: this share of those at places that predict nothing."""
    kept_BT = jax.random.bernoulli(key, 1 - share, batch.tokens_BT.shape) | (batch.weights_BT > 0)
    return replace(batch, segments_BT=jnp.where(kept_BT, batch.segments_BT, 0))
