"""Chat templates: from messages to the ids that a model was trained to read them in.

A template is a program of Jinja, and comes with the weights. It is rendered in Jinja's sandbox, in a process of its own
with limits on time and memory. What it puts around the messages may be control tokens; what the messages say never is.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lmjax.errors import UserError, path_text

if TYPE_CHECKING:
    from lmjax.tokenizers import HuggingFaceTokenizer

SECONDS = 20
SIZE_LIMIT = 10_000_000
# stands inside a special token that a message spells out, so that it is none; from Unicode's private part
BREAK = "\ue000"


@dataclass(frozen=True)
class Chat:
    """template: in Jinja. names: of the special tokens that templates speak of, such as bos_token, with their texts."""

    template: str
    names: dict[str, str] = field(default_factory=dict)


def chat_of(directory: Path) -> Chat | None:
    """The template of a Hugging Face directory, from chat_template.jinja or tokenizer_config.json; None where it has
    none. Of several, the one named default. Raises UserError where these are not what they should be."""
    file = directory / "tokenizer_config.json"
    settings = _object(file)
    alone = directory / "chat_template.jinja"
    template = _text(alone) if alone.is_file() else settings.get("chat_template")
    if isinstance(template, list):
        template = next(
            (t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"), None
        )
    if template is None:
        return None
    if not isinstance(template, str):
        raise UserError(f"{path_text(file)}: chat_template is no text")
    names = {}
    for name, token in settings.items():
        token = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(token, str):
            names[name] = token
    return Chat(template, names)


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > SIZE_LIMIT:
            raise UserError(f"{path_text(file)}: larger than {SIZE_LIMIT:,} bytes; expected a chat template")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path_text(file)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path_text(file)}: not UTF-8 at byte {error.start}") from None


def _object(file: Path) -> dict:
    if not file.is_file():
        return {}
    try:
        found = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path_text(file)}: not JSON: {' '.join(str(error).split())[:100]}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path_text(file)}: expected an object of JSON")
    return found


def chat_ids(tokenizer: "HuggingFaceTokenizer", messages: list[dict[str, str]], *, reply: bool = True) -> np.ndarray:
    """The ids of a conversation, such as [{"role": "user", "content": "Hello"}]. reply: with what stands before the
    model's answer. Raises UserError where the tokenizer has no template, or the template refuses the messages."""
    if getattr(tokenizer, "chat", None) is None:
        raise UserError("this model's tokenizer has no chat template; expected one in tokenizer_config.json")
    specials = tokenizer.special_tokens()
    spelt = any(token in str(message.get("content")) for message in messages for token in specials)
    if not spelt:
        return tokenizer.encode_with_controls(render(tokenizer.chat, messages, reply=reply))
    text = render(tokenizer.chat, [_broken(message, specials) for message in messages], reply=reply)
    ids = []
    for piece in _split(text, specials):
        ids += [specials[piece]] if piece in specials else tokenizer.encode(piece.replace(BREAK, "")).tolist()
    return np.array(ids, np.int32)


def _broken(message: dict[str, str], specials: dict[str, int]) -> dict[str, str]:
    content = message["content"]
    for token in sorted(specials, key=len, reverse=True):
        content = content.replace(token, token[0] + BREAK + token[1:])
    return message | {"content": content}


def _split(text: str, specials: dict[str, int]) -> list[str]:
    """The text cut before and after every special token, the longest first."""
    import re

    pattern = "|".join(re.escape(token) for token in sorted(specials, key=len, reverse=True))
    return [piece for piece in re.split(f"({pattern})", text) if piece]


def render(chat: Chat, messages: list[dict[str, str]], *, reply: bool) -> str:
    """What the template makes of the messages. Raises UserError where it fails, or takes too long or too much."""
    question = json.dumps(
        {"template": chat.template, "variables": chat.names | {"messages": messages, "add_generation_prompt": reply}}
    )
    renderer = Path(__file__).with_name("render_template.py")
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(renderer)], input=question, capture_output=True, text=True, encoding="utf-8",
            timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"the chat template took more than {SECONDS} s and was stopped") from None
    if done.returncode == 3:
        raise UserError(f"the chat template refuses: {' '.join(done.stdout.split())[:300]}")
    if done.returncode:
        raise UserError("the chat template took too much memory or time and was stopped")
    return json.loads(done.stdout)
