"""Instruction data: the next token of a conversation, where only what the assistant says counts."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from lmjax.data.packing import Example, next_tokens
from lmjax.data.sources import Record
from lmjax.errors import UserError, at
from lmjax.models.config import ModelConfig
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.conversations import continued, is_conversation, messages_of
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.chat import Message, Said, said


@dataclass(frozen=True, kw_only=True)
class Chat(CausalLM):
    """Maximum likelihood of the answers in conversations, as the tokenizer's own chat template writes them.

    messages: the field with a list of {"role", "content"}; every message of the role assistant is an answer. prompt,
    completion: where a record has these instead, the completion is the answer: two lists of messages, or two texts,
    which stand as they are, without a template. too_long: what becomes of a conversation that is longer than a row: an
    error, or its beginning is read.
    """

    messages: str = "messages"
    prompt: str = "prompt"
    completion: str = "completion"
    too_long: Literal["error", "cut"] = "error"

    on_records: ClassVar[bool] = True

    @property
    def fields(self) -> tuple[str, ...]:
        """Of a record, what the model reads."""
        return (self.messages,)

    def texts(self, record: Record) -> list[str]:
        """What a tokenizer may learn from."""
        fields = [self.messages] if self.is_whole(record) else [self.prompt, self.completion]
        texts = []
        for name in fields:
            is_list = is_conversation(record, name)
            texts += [m["content"] for m in messages_of(record, name)] if is_list else [record.text(name)]
        return texts

    def fitted(self, records: Iterable[Record]) -> "Chat":
        """Nothing is taken from the records."""
        return self

    def is_whole(self, record: Record) -> bool:
        """Whether the record has one conversation, not a prompt and its completion. Raises UserError where it has
        neither."""
        if self.messages in record.fields:
            return True
        if self.prompt not in record.fields or self.completion not in record.fields:
            has = ", ".join(map(repr, record.fields)) or "none"
            raise UserError(
                f"{record.where}: no field {self.messages!r}, nor {self.prompt!r} and {self.completion!r}; it has {has}"
            )
        return False

    def encode(
        self, record: Record, tokenizer: Tokenizer, cfg: ModelConfig, length: int, source_length: int | None = None
    ) -> list[Example]:
        """One example, or one for each answer (`tokenizers.chat.said`). Raises UserError where there is no answer, or
        the conversation is too long."""
        examples = []
        for one in self.said(record, tokenizer):
            if len(one.ids) > length + 1 and self.too_long == "error":
                raise UserError(
                    f"{record.where}: {len(one.ids) - 1} tokens; a row has {length} (task.too_long=cut reads the "
                    "beginning)"
                )
            example = next_tokens(one.ids[: length + 1], one.answered[: length + 1])
            # an answer may lie behind the cut
            examples += [example] if example.weights.any() else []
        return examples

    def asked(self, record: Record) -> list[Message] | str:
        """What stands before a record's last answer, or before the one that it does not have yet."""
        if self.messages not in record.fields and self.completion not in record.fields:
            is_list = is_conversation(record, self.prompt)
            return messages_of(record, self.prompt) if is_list else record.text(self.prompt)
        messages, _ = self.conversation(record)
        if messages is None:
            return record.text(self.prompt)
        return messages[:-1] if messages[-1]["role"] == "assistant" else messages

    def answered(self, record: Record) -> Record:
        """A record that has an answer, without what stands behind its last one."""
        name = self.messages if self.is_whole(record) else self.completion
        if not is_conversation(record, name):
            return record
        messages = messages_of(record, name)
        last = max(place for place, message in enumerate(messages, 1) if message["role"] == "assistant")
        return record._replace(fields=record.fields | {name: messages[:last]})

    def answer(self, record: Record) -> str:
        """The last one. Raises UserError where there is none."""
        messages, _ = self.conversation(record)
        if messages is None:
            return record.text(self.completion)
        if messages[-1]["role"] != "assistant":
            raise UserError(f"{record.where}: the last message is not the assistant's; expected an answer")
        return messages[-1]["content"]

    def said(self, record: Record, tokenizer: Tokenizer) -> list[Said]:
        """The ids of a record, and which are answers. Raises UserError as `encode`."""
        messages, given = self.conversation(record)
        if messages is None:
            return [continued(record, tokenizer, self.prompt, self.completion)]
        with at(record.where):
            return said(tokenizer, messages, given)

    def conversation(self, record: Record) -> tuple[list[Message] | None, int]:
        """(messages, how many of them are given and not learnt); None for two plain texts."""
        if self.is_whole(record):
            return messages_of(record, self.messages), 0
        if not is_conversation(record, self.prompt):
            return None, 0
        before = messages_of(record, self.prompt)
        return before + messages_of(record, self.completion), len(before)
