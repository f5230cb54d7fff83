"""The answer to a question as a piece of a text (BERT, arXiv:1810.04805, section 4.2, and its run_squad.py)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.packing import Example
from lmjax.data.sources import Record
from lmjax.errors import UserError
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.tasks.answers import Answer, answers_of
from lmjax.tasks.loss import Loss, with_routing
from lmjax.tasks.segments import same_segment, segment_max, segment_sum
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.pairs import encode_pair
from lmjax.tokenizers.spans import spans

# flags in targets_BT
START, END = 1, 2
# the type of `mark_shared`
SHARED = 2


class Asked(NamedTuple):
    """A question with its context, in windows. spans_S2: the characters of each token of the context. starts: which of
    these tokens is each window's first. room: for how many of them there is room. before: where in a window the first
    stands. windows: (ids, types) of each."""

    context: str
    spans_S2: np.ndarray
    starts: tuple[int, ...]
    room: int
    before: int
    windows: list[tuple[np.ndarray, np.ndarray]]

    def tokens(self, window: int) -> slice:
        """Those of the context that a window has."""
        return slice(self.starts[window], min(self.starts[window] + self.room, len(self.spans_S2)))


@dataclass(frozen=True, kw_only=True)
class SpanQA:
    """The first and the last token of the answer, each by a softmax over all tokens of the question and its context.

    context, question, answers: names of the fields. answers: as `tasks.answers` reads them; training takes the first,
    and needs to know where it begins. stride: a context that is longer than a row is read in
    windows that begin so many tokens apart; None: half of what a row has room for. In a window that does not hold the
    whole answer, both ends are the row's first token. longest_answer: in tokens, of what is predicted. null_threshold:
    None: every question has an answer; a number: there may be none (SQuAD 2.0), and none is predicted where the
    score of the first token is higher by more than that than the best answer's. mark_shared: tokens of the context
    that the question has too are of a type of their own, the model's third (the exact-match feature of DrQA,
    arXiv:1704.00051, section 3.2): a model that is trained from nothing need not learn to compare names first.
    """

    context: str = "context"
    question: str = "question"
    answers: str = "answers"
    stride: int | None = None
    longest_answer: int = 30
    null_threshold: float | None = None
    mark_shared: bool = False

    on_records: ClassVar[bool] = True
    has_types: ClassVar[bool] = True
    outputs: ClassVar[int] = 2

    def __post_init__(self):
        for name in ("stride", "longest_answer"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected a positive number")

    def check(self, cfg: ModelConfig) -> None:
        """Raises ValueError where the model cannot do this task."""
        if cfg.causal:
            raise ValueError("task SpanQA: a token of the context must see the question and what comes after it; "
                             "expected model.causal to be False")  # fmt: skip
        if cfg.pooler:
            raise ValueError("task SpanQA reads every token, and model.pooler is a layer over the first one")
        if self.mark_shared and cfg.token_types < 3:
            raise ValueError(f"task.mark_shared needs model.token_types to be 3 or more; it is {cfg.token_types}")

    def predicted(self, length: int) -> int:
        """There are no probabilities of tokens."""
        return 0

    def chunk(self, rows: int, length: int, vocab: int) -> None:
        """All places of a row at one time: there are no logits over a vocabulary."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Of a record, what the model reads."""
        return (self.question, self.context)

    def texts(self, record: Record) -> list[str]:
        """What a tokenizer may learn from."""
        return [record.text(name) for name in self.fields]

    def fitted(self, records: Iterable[Record]) -> "SpanQA":
        """The task takes nothing from its records."""
        return self

    def change(self, tokenizer: Tokenizer, seed: int) -> None:
        """Batches are read as they are."""

    def asked(self, record: Record, tokenizer: Tokenizer, length: int) -> Asked:
        """The record's question for rows of this length. Raises UserError where the question or the context is missing
        or empty, or where the question leaves no room for an answer."""
        question, context = self.texts(record)
        for name, text in ((self.question, question), (self.context, context)):
            if not text.strip():
                raise UserError(f"{record.where}: {name!r} is empty")
        pair, spans_S2 = encode_pair(tokenizer, question, context), spans(tokenizer, context)
        if not len(spans_S2):
            raise UserError(f"{record.where}: the tokenizer has no token for {self.context!r}, {context[:40]!r}")
        ids, types, (first, stop) = pair.ids, pair.types, (pair.second.start, pair.second.stop)
        if self.mark_shared:
            shared_S = np.isin(ids[pair.second], tokenizer.encode(question))
            types[pair.second] = np.where(shared_S, SHARED, types[pair.second])
        room = length - len(ids) + len(spans_S2)
        if room < self.longest_answer:
            raise UserError(
                f"{record.where}: the question has {len(ids) - len(spans_S2)} tokens, control tokens included, and "
                f"leaves {room} of a row's {length} for the context; expected task.longest_answer {self.longest_answer}"
            )
        stride = min(self.stride or max(1, room // 2), room)
        starts = (0, *range(stride, len(spans_S2) - room + stride, stride))

        def window(part: np.ndarray, start: int) -> np.ndarray:
            return np.concatenate([part[:first], part[first:stop][start : start + room], part[stop:]])

        return Asked(context, spans_S2, starts, room, first, [(window(ids, s), window(types, s)) for s in starts])

    def encode(
        self, record: Record, tokenizer: Tokenizer, cfg: ModelConfig, length: int, source_length: int | None = None
    ) -> list[Example]:
        """One example a window. Raises UserError as `asked` and `answers_of`."""
        asked, ends = self.asked(record, tokenizer, length), None
        if answers := self.answers_of(record):
            ends = self._tokens_of(answers[0], asked.spans_S2, record)
        return [
            Example(ids, *_targets(len(ids), *_places(ends, asked, window)), types)
            for window, (ids, types) in enumerate(asked.windows)
        ]

    def answers_of(self, record: Record) -> list[Answer]:
        """Raises UserError where there is none and the task expects one, and where one is not in the context at the
        place that it names."""
        context, found = record.text(self.context), answers_of(record, self.answers)
        if not found and self.null_threshold is None:
            raise UserError(
                f"{record.where}: no answer; expected one, or task.null_threshold for questions that have none"
            )
        for text, start in found:
            if not text:
                raise UserError(f"{record.where}: an answer is empty; expected a text")
            if start is not None and not (isinstance(start, int) and start >= 0 and context.startswith(text, start)):
                raise UserError(
                    f"{record.where}: the answer {text[:40]!r} is not in its context at answer_start {start}"
                )
        return found

    def _tokens_of(self, answer: Answer, spans_S2: np.ndarray, record: Record) -> tuple[int, int]:
        """(first, last) of the context's tokens that stand for a part of the answer."""
        if answer.start is None:
            raise UserError(f"{record.where}: the answer {answer.text[:40]!r} has no answer_start")
        first_S, end_S = spans_S2.T
        covering = np.flatnonzero((first_S < answer.start + len(answer.text)) & (end_S > answer.start))
        if not len(covering):
            raise UserError(f"{record.where}: the tokenizer has no token for the answer {answer.text[:40]!r}")
        return int(covering[0]), int(covering[-1])

    def training_loss(self, cfg: ModelConfig, params, batch: Batch, dropout_key) -> Loss:
        """The mean of the cross-entropies of the first and the last token, a sum over the windows; experts' losses
        as those of CausalLM."""
        hidden_BTD, routing = transformer.trained(
            cfg, params, batch.tokens_BT, batch.positions_BT, batch.segments_BT, types_BT=batch.types_BT,
            dropout_key=dropout_key if cfg.dropout else None,
        )  # fmt: skip
        loss = span_loss(transformer.outputs(cfg, params, hidden_BTD), batch)
        return with_routing(loss, routing, cfg.feedforward)

    def held_out_loss(self, cfg: ModelConfig, params, batch: Batch) -> Loss:
        """The same without dropout, and in how many windows both ends are the most probable ones."""
        logits_BTC = self.logits(cfg, params, batch)
        return replace(span_loss(logits_BTC, batch), correct=spans_right(logits_BTC, batch))

    def logits(self, cfg: ModelConfig, params, batch: Batch) -> jax.Array:
        """(B, T, 2): of each place as the first, and as the last token of the answer."""
        hidden_BTD, _ = transformer.hidden(
            cfg, params, batch.tokens_BT, batch.positions_BT, batch.segments_BT, types_BT=batch.types_BT
        )
        return transformer.outputs(cfg, params, hidden_BTD)


def _places(ends: tuple[int, int] | None, asked: Asked, window: int) -> tuple[int, int]:
    """Of the first and the last token of the answer in a window; the window's first where it does not hold both."""
    here = asked.tokens(window)
    if ends is None or ends[0] < here.start or ends[1] >= here.stop:
        return 0, 0
    return tuple(asked.before + end - here.start for end in ends)


def _targets(length: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """(targets, weights): flags of the two ends, and half a weight for each."""
    targets, weights = np.zeros(length, np.int32), np.zeros(length, np.float32)
    for place, flag in ((first, START), (last, END)):
        targets[place] |= flag
        weights[place] += 0.5
    return targets, weights


def _flags(batch: Batch) -> jax.Array:
    """(B, T, 2): whether the place is the first, and whether it is the last token of the answer."""
    return (batch.targets_BT[..., None] & jnp.array([START, END])) > 0


def span_loss(logits_BTC: jax.Array, batch: Batch) -> Loss:
    """-log softmax over the places of a segment, at the ends that are flagged. weight: the number of windows."""
    same_BTS, flags_BTC = same_segment(batch.segments_BT), _flags(batch)
    top_BTC = jax.lax.stop_gradient(segment_max(logits_BTC, same_BTS))
    log_z_BTC = top_BTC + jnp.log(segment_sum(jnp.exp(logits_BTC - top_BTC), same_BTS))
    nats_BTC = jnp.where(flags_BTC, log_z_BTC - logits_BTC, 0)
    nats_BT = nats_BTC.sum(-1) / jnp.maximum(flags_BTC.sum(-1), 1)
    return Loss(jnp.sum(nats_BT * batch.weights_BT), jnp.sum(batch.weights_BT))


def spans_right(logits_BTC: jax.Array, batch: Batch) -> jax.Array:
    """How many windows have both of their ends where the logits are largest."""
    same_BTS, flags_BTC = same_segment(batch.segments_BT), _flags(batch)
    hits_BTC = flags_BTC & (logits_BTC == segment_max(logits_BTC, same_BTS))
    count_BT = segment_sum(hits_BTC.astype(jnp.float32), same_BTS).sum(-1)
    return jnp.sum(flags_BTC[..., 0] & (count_BT == 2), dtype=jnp.float32)
