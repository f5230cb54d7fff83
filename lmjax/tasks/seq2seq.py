"""A text for a text: translation, summaries, answers to questions; by an encoder and a decoder, or a decoder alone."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import jax
import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.packing import Example, next_tokens
from lmjax.data.sources import Record
from lmjax.data.templates import filled, names
from lmjax.errors import UserError
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.tasks.answers import answers_of
from lmjax.tasks.causal_lm import NextToken
from lmjax.tasks.loss import Loss, check_loss, log_probabilities, vocabulary_loss
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.sides import decoder_start, prompt_ids, source_ids, target_ids


@dataclass(frozen=True, kw_only=True)
class Seq2Seq(NextToken):
    """log p(target | source) of every token of the target and of EOS behind it (arXiv:1409.3215, equation 1).

    source: a template with fields in braces, which the encoder reads, or, where there is none, the decoder before
    the target; there it ends with `separator`. target: the name of the field with the text to write, or with several
    (`tasks.answers`), of which the first is learnt and any is right. label_smoothing: only in training.
    too_long: what becomes of a training example with more tokens than a row: an error, or it is left out.

    start: the id that the decoder beside an encoder begins with; None: that of the model which init_from names,
    otherwise BOS, or EOS where there is none. figures: what is said of texts that are written: BLEU and chrF, or
    SQuAD's exact match and F1. beams, length_penalty: of the search that writes them (`generate/beam.py`); 1 beam:
    greedily.
    """

    source: str = "{source}"
    target: str = "target"
    separator: str = " => "
    label_smoothing: float = 0.0
    too_long: Literal["error", "drop"] = "error"
    figures: Literal["translation", "answers"] = "translation"
    beams: int = 1
    length_penalty: float = 1.0
    start: int | None = None

    on_records: ClassVar[bool] = True

    def __post_init__(self):
        check_loss(self.label_smoothing, self.loss_chunk)
        if self.beams < 1:
            raise ValueError(f"beams is {self.beams}; expected a positive number")
        if self.beams == 1 and self.length_penalty != 1.0:
            raise ValueError(f"length_penalty is {self.length_penalty}, and beams 1, no search")

    def check(self, cfg: ModelConfig) -> None:
        """Raises ValueError where the model, with the length of a row as its context, cannot do this task."""
        super().check(replace(cfg, encoder_layers=0))

    @property
    def fields(self) -> tuple[str, ...]:
        """Of a record, what the model reads."""
        return tuple(names(self.source))

    def texts(self, record: Record) -> list[str]:
        """What a tokenizer may learn from: both sides."""
        return [filled(self.source, record), self.references(record)[0]]

    def fitted(self, records) -> "Seq2Seq":
        """There is nothing to take from the records."""
        return self

    def references(self, record: Record) -> list[str]:
        """The right texts. Raises UserError where there is none."""
        texts = [answer.text for answer in answers_of(record, self.target)]
        if not texts:
            raise UserError(f"{record.where}: {self.target!r} has no text; expected one, or several")
        return texts

    def prompt(self, record: Record, tokenizer: Tokenizer, cfg: ModelConfig) -> tuple[np.ndarray, np.ndarray | None]:
        """(what the decoder reads before the first token that it writes, what the encoder reads; None: there is
        none). Raises UserError where the text is missing."""
        if tokenizer.policy.eos is None:
            raise UserError("task Seq2Seq: the tokenizer has no EOS, behind which a text that is written would end")
        text = filled(self.source, record)
        if not cfg.encoder_layers:
            return prompt_ids(text + self.separator, tokenizer), None
        source = source_ids(text, tokenizer)
        start = decoder_start(tokenizer.policy) if self.start is None else self.start
        return np.array([start], np.int32), source

    def encode(
        self, record: Record, tokenizer: Tokenizer, cfg: ModelConfig, length: int, source_length: int | None = None
    ) -> list[Example]:
        """One example, or none where it is left out. source_length: of the encoder's rows; None: as length. Raises
        UserError where a side is too long or missing."""
        before, source = self.prompt(record, tokenizer, cfg)
        whole = np.concatenate([before[:-1], target_ids(self.references(record)[0], tokenizer, before[-1])])
        example = next_tokens(whole, np.arange(len(whole)) >= len(before), source)
        sides = (("the target", example.tokens, length), ("the source", source, source_length or length))
        for side, ids, room in sides:
            if ids is not None and len(ids) > room:
                if self.too_long == "drop":
                    return []
                raise UserError(
                    f"{record.where}: {side} has {len(ids)} tokens; a row has {room} (task.too_long=drop leaves it out)"
                )
        return [example]

    def training_loss(self, cfg: ModelConfig, params, batch: Batch, dropout_key) -> Loss:
        """With dropout and smoothing where they are asked for."""
        key = dropout_key if cfg.dropout else None
        return self._loss(cfg, params, batch, key, label_smoothing=self.label_smoothing)

    def held_out_loss(self, cfg: ModelConfig, params, batch: Batch) -> Loss:
        """The plain negative log-likelihood of the targets."""
        return self._loss(cfg, params, batch, None)

    def log_probabilities(self, cfg: ModelConfig, params, batch: Batch) -> jax.Array:
        """(B, T) of each place's target."""
        return log_probabilities(
            self._hidden(cfg, params, batch, None), transformer.unembedding(cfg, params), batch.targets_BT,
            chunk=self.chunk(*batch.targets_BT.shape, cfg.vocab), cap=cfg.logit_cap,
        )  # fmt: skip

    def _loss(self, cfg: ModelConfig, params, batch: Batch, key, **kind) -> Loss:
        return vocabulary_loss(
            self._hidden(cfg, params, batch, key), transformer.unembedding(cfg, params), batch.targets_BT,
            batch.weights_BT, chunk=self.chunk(*batch.targets_BT.shape, cfg.vocab), cap=cfg.logit_cap, **kind,
        )  # fmt: skip

    def _hidden(self, cfg: ModelConfig, params, batch: Batch, key) -> jax.Array:
        source = None
        if batch.source is not None:
            read = batch.source
            tokens = (read.tokens_BS, read.positions_BS, read.segments_BS)
            source = transformer.encode(cfg, params, *tokens, dropout_key=key)
        hidden_BTD, _ = transformer.trained(
            cfg, params, batch.tokens_BT, batch.positions_BT, batch.segments_BT, source=source, dropout_key=key
        )
        return hidden_BTD
