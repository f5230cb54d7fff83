"""Preferences: of two answers the chosen one is to become the likelier one, by direct preference optimisation
(DPO, arXiv:2305.18290)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.packing import Example, PackedRows, next_tokens
from lmjax.data.sources import Record
from lmjax.errors import UserError, at
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.tasks.causal_lm import NextToken
from lmjax.tasks.conversations import continued, is_conversation, messages_of
from lmjax.tasks.loss import Loss, log_probabilities, with_routing
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.chat import Message, Said, said

# what Example.types says of a place
CHOSEN, REJECTED = 1, 2


@dataclass(frozen=True, kw_only=True)
class Preferences(NextToken):
    """-log sigmoid(beta (log p(chosen) - log p'(chosen) - log p(rejected) + log p'(rejected))), the mean over pairs
    (equation 7), where p' is the model before the first step.

    prompt, chosen, rejected: fields. Of texts, which stand as they are, the answers follow the prompt. Of lists of
    messages, written by the tokenizer's chat template, the answers are whole conversations that end with them, or one
    message each of the assistant, after `prompt`, which is a list too or a user's words. label_smoothing: the share of
    pairs that is taken to stand the wrong way round (conservative DPO; Mitchell, 2023, "A note on DPO with noisy
    preferences", equation 3). too_long: what becomes of a pair that is longer than a row.
    """

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    beta: float = 0.1
    label_smoothing: float = 0.0
    too_long: Literal["error", "skip"] = "error"

    on_records: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; expected a positive number")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; expected a number from 0 to below 0.5")

    @property
    def fields(self) -> tuple[str, ...]:
        """Of a record, what the model reads."""
        return (self.prompt, self.chosen, self.rejected)

    def texts(self, record: Record) -> list[str]:
        """What a tokenizer may learn from."""
        texts = []
        for name in (self.prompt, self.chosen, self.rejected):
            if name != self.prompt or name in record.fields:
                is_list = is_conversation(record, name)
                texts += [m["content"] for m in messages_of(record, name)] if is_list else [record.text(name)]
        return texts

    def fitted(self, records: Iterable[Record]) -> "Preferences":
        """Nothing is taken from the records."""
        return self

    def encode(
        self, record: Record, tokenizer: Tokenizer, cfg: ModelConfig, length: int, source_length: int | None = None
    ) -> list[Example]:
        """One example with both answers, each after the prompt, so that they lie in one row. Raises UserError where
        they are the same, one is empty, or they are too long."""
        sides = [next_tokens(*side) for side in self.sides(record, tokenizer)]
        types = np.repeat([CHOSEN, REJECTED], [len(side.tokens) for side in sides])
        if len(types) > length:
            if self.too_long == "skip":
                return []
            raise UserError(
                f"{record.where}: {len(types)} tokens in both answers with their prompts; a row has {length} "
                "(task.too_long=skip leaves such pairs out)"
            )
        tokens, targets, weights = (np.concatenate(parts) for parts in list(zip(*sides, strict=True))[:3])
        return [Example(tokens, targets, weights, types)]

    def sides(self, record: Record, tokenizer: Tokenizer) -> tuple[Said, Said]:
        """What is read with the chosen answer, and with the rejected one. Raises UserError as `encode`."""
        if is_conversation(record, self.chosen):
            before, answers = self._conversations(record)
            with at(record.where):
                pair = [said(tokenizer, [*before, answer], len(before))[0] for answer in answers]
        else:
            pair = [continued(record, tokenizer, self.prompt, name) for name in (self.chosen, self.rejected)]
        if np.array_equal(pair[0].ids, pair[1].ids):
            raise UserError(f"{record.where}: {self.chosen!r} and {self.rejected!r} are the same; expected two answers")
        return tuple(pair)

    def _conversations(self, record: Record) -> tuple[list[Message], list[Message]]:
        """(what stands before the answers, the two answers)."""
        sides = [messages_of(record, name) for name in (self.chosen, self.rejected)]
        if sides[0][0]["role"] != "assistant":
            # whole conversations: all but their last messages is the prompt
            shared = min(map(len, sides)) - 1
            before = sides[0][:shared]
            if sides[1][:shared] != before:
                raise UserError(f"{record.where}: {self.chosen!r} and {self.rejected!r} part before their last message")
            sides = [side[shared:] for side in sides]
        elif is_conversation(record, self.prompt):
            before = messages_of(record, self.prompt)
        else:
            before = [{"role": "user", "content": record.text(self.prompt)}]
        for name, side in zip((self.chosen, self.rejected), sides, strict=True):
            if len(side) != 1 or side[0]["role"] != "assistant":
                raise UserError(f"{record.where}: {name!r}: expected one answer of the assistant after what both share")
        return before, [side[0] for side in sides]

    def change(self, tokenizer: Tokenizer, seed: int):
        """The two answers of each pair are segments of their own: `apart`."""
        return lambda batch, rows: apart(batch)

    def training_loss(self, cfg: ModelConfig, params, batch: Batch, dropout_key) -> Loss:
        """With dropout, and with the losses of experts' routers beside it."""
        hidden_BTD, routing = transformer.trained(
            cfg, params, batch.tokens_BT, batch.positions_BT, batch.segments_BT,
            dropout_key=dropout_key if cfg.dropout else None,
        )  # fmt: skip
        loss = self._loss(batch, self._log_p(cfg, params, batch, hidden_BTD))
        return with_routing(replace(loss, correct=None, figures=None), routing, cfg.feedforward)

    def held_out_loss(self, cfg: ModelConfig, params, batch: Batch) -> Loss:
        """Without dropout; how many chosen answers have the higher reward, and the rewards beta log(p / p')."""
        return self._loss(batch, self.log_p(cfg, params, batch))

    def log_p(self, cfg: ModelConfig, params, batch: Batch) -> jax.Array:
        """(B, T // 2, 2): of the pairs of each row log p of the chosen and of the rejected answer; 0 where no pair
        is."""
        hidden_BTD, _ = transformer.hidden(cfg, params, batch.tokens_BT, batch.positions_BT, batch.segments_BT)
        return self._log_p(cfg, params, batch, hidden_BTD)

    def _log_p(self, cfg: ModelConfig, params, batch: Batch, hidden_BTD) -> jax.Array:
        log_p_BT = log_probabilities(
            hidden_BTD, transformer.unembedding(cfg, params), batch.targets_BT,
            chunk=self.chunk(*batch.targets_BT.shape, cfg.vocab), cap=cfg.logit_cap,
        )  # fmt: skip
        return by_pair(log_p_BT * batch.weights_BT, batch.segments_BT)

    def _loss(self, batch: Batch, log_p_BP2: jax.Array) -> Loss:
        rewards_BP2 = self.beta * (log_p_BP2 - by_pair(batch.reference_BT, batch.segments_BT))
        there_BP = by_pair(batch.weights_BT, batch.segments_BT)[..., 0] > 0
        margins_BP = rewards_BP2[..., 0] - rewards_BP2[..., 1]
        right_BP, wrong_BP = jax.nn.log_sigmoid(margins_BP), jax.nn.log_sigmoid(-margins_BP)
        nats_BP = -(1 - self.label_smoothing) * right_BP - self.label_smoothing * wrong_BP
        figures = {
            "chosen_reward": rewards_BP2[..., 0], "rejected_reward": rewards_BP2[..., 1], "margin": margins_BP,
        }  # fmt: skip
        total = partial(jnp.sum, where=there_BP)
        return Loss(
            total(nats_BP), jnp.sum(there_BP.astype(jnp.float32)), correct=jnp.sum(there_BP & (margins_BP > 0)),
            figures={name: total(x_BP) for name, x_BP in figures.items()},
        )  # fmt: skip


def by_pair(x_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """(B, T // 2, 2): sums over the two segments of each pair of a row: 1 and 2, 3 and 4, ..."""
    B, T = x_BT.shape
    sums_BS = jax.vmap(partial(jax.ops.segment_sum, num_segments=T // 2 * 2 + 1))(x_BT, segments_BT)
    return sums_BS[:, 1:].reshape(B, T // 2, 2)


def apart(batch: Batch) -> Batch:
    """Of a batch whose segments are pairs, told apart by their types, one whose segments are their sides: of pair n
    2n - 1 and 2n, with positions of their own."""
    second_BT = batch.types_BT == REJECTED
    begins_BT = second_BT & (np.roll(batch.types_BT, 1, axis=1) == CHOSEN)
    place_T = np.arange(second_BT.shape[1])
    begin_BT = np.maximum.accumulate(np.where(begins_BT, place_T, 0), axis=1)
    segments_BT = np.where(batch.types_BT > 0, 2 * batch.segments_BT - ~second_BT, 0)
    return replace(
        batch, segments_BT=segments_BT.astype(np.int32), types_BT=None,
        positions_BT=np.where(second_BT, place_T - begin_BT, batch.positions_BT).astype(batch.positions_BT.dtype),
    )  # fmt: skip


def with_reference(rows: PackedRows, log_p_E2: np.ndarray) -> PackedRows:
    """The rows with what the reference gives to the answers of each example, chosen and rejected, which stands at the
    first place of each that counts."""
    example_N = np.repeat(np.arange(len(rows.tokens)), rows.tokens.lengths)
    values_N = np.zeros(len(example_N), np.float32)
    for side, kind in enumerate((CHOSEN, REJECTED)):
        places = np.flatnonzero((rows.types.values == kind) & (rows.weights.values > 0))
        examples, first = np.unique(example_N[places], return_index=True)
        values_N[places[first]] = log_p_E2[examples, side]
    return rows.with_reference(values_N)
