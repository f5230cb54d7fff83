"""Records that say what a model is to answer: conversations, or a prompt and what comes after it."""

import numpy as np

from lmjax.data.sources import Record
from lmjax.errors import UserError
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.chat import Message, Said, common


def messages_of(record: Record, name: str) -> list[Message]:
    """The messages in a field, each with `role` and `content`. Raises UserError where these are none, or an answer is
    empty."""
    messages = record.field(name)
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{record.where}: {name!r} is {str(messages)[:40]!r}; expected a list of messages")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise UserError(f"{record.where}: message {number} of {name!r}: expected an object with role and content")
        spoken = Record(record.name, f"{record.where}: message {number} of {name!r}", message)
        if not spoken.text("role"):
            raise UserError(f"{spoken.where}: 'role' is empty; expected user, assistant or system")
        if not spoken.text("content") and message["role"] == "assistant":
            raise UserError(f"{spoken.where}: the answer is empty")
    return messages


def is_conversation(record: Record, name: str) -> bool:
    """Whether a field that must be there has messages, and not a text."""
    return isinstance(record.field(name), list)


def continued(record: Record, tokenizer: Tokenizer, prompt: str, answer: str) -> Said:
    """Two texts as one document, without a chat template; the second one, with EOS where the policy has it, is the
    answer. prompt, answer: names of fields. Raises UserError where the answer is empty."""
    before, after = record.text(prompt), record.text(answer)
    if not after:
        raise UserError(f"{record.where}: {answer!r} is empty; expected an answer")
    ids = tokenizer.encode_document(before + after)
    bos = [] if tokenizer.policy.bos is None else [tokenizer.policy.bos]
    # encoded together as a text is; a token that reaches over the border belongs to the answer
    given = common(np.concatenate([bos, tokenizer.encode(before)]), ids)
    return Said(ids, np.arange(len(ids)) >= given)
