"""Chat templates: from messages to the ids that a model was trained to read them in.

A template is a program of Jinja, and comes with the weights. It is rendered in Jinja's sandbox, in a process of its own
with limits on time and memory. What it puts around the messages may be control tokens; what the messages say never is.
"""

import copy
import datetime
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lmjax.errors import UserError, path_text
from lmjax.json_files import object_if_there, read_text

if TYPE_CHECKING:
    from lmjax.tokenizers import Tokenizer

SECONDS = 20
SIZE_LIMIT = 10_000_000
# stands inside a special token that a message spells out, so that it is none; from Unicode's private part
BREAK = "\ue000"
# for tokenizers that come without a template, of nothing but BOS, EOS and text
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] ~ ': ' ~ message['content'] ~ eos_token ~ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
Message = dict[str, str]


@dataclass(frozen=True)
class Chat:
    """template: in Jinja. names: of the special tokens that templates speak of, such as bos_token, with their texts.
    date: the day that a template which tells it is told, in ISO 8601; None: today."""

    template: str
    names: dict[str, str] = field(default_factory=dict)
    date: str | None = None


def chat_of(directory: Path) -> Chat | None:
    """The template of a Hugging Face directory, from chat_template.jinja or tokenizer_config.json; None where it has
    none. Of several, the one named default. Raises UserError where these are not what they should be."""
    file = directory / "tokenizer_config.json"
    settings = object_if_there(file, SIZE_LIMIT, "a tokenizer's settings")
    alone = directory / "chat_template.jinja"
    template = read_text(alone, SIZE_LIMIT, "a chat template") if alone.is_file() else settings.get("chat_template")
    if isinstance(template, list):
        template = next(
            (t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"), None
        )
    if template is None:
        return None
    if not isinstance(template, str):
        raise UserError(f"{path_text(file)}: chat_template is no text")
    return Chat(template, special_names(settings))


def names_of(directory: Path) -> dict[str, str]:
    """What a Hugging Face directory calls its special tokens. Raises UserError as `chat_of`."""
    return special_names(object_if_there(directory / "tokenizer_config.json", SIZE_LIMIT, "a tokenizer's settings"))


def special_names(settings: dict) -> dict[str, str]:
    """The texts of special tokens by the fields of tokenizer_config.json, such as bos_token."""
    found = {}
    for name, token in settings.items():
        token = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(token, str):
            found[name] = token
    return found


def with_template(tokenizer: "Tokenizer", template: str | None) -> "Tokenizer":
    """The tokenizer with the template of a file, or with PLAIN where that says "plain"; None: as it is. Raises
    UserError where there is no such file, or PLAIN has no EOS to end a message with."""
    if template is None:
        return tokenizer
    controls = {index: token for token, index in tokenizer.special_tokens().items()}
    ids = {"bos_token": tokenizer.policy.bos, "eos_token": tokenizer.policy.eos}
    names = {name: controls[index] for name, index in ids.items() if index in controls}
    if template == "plain" and "eos_token" not in names:
        raise UserError(
            "tokenizer.chat_template=plain ends each message with EOS; expected tokenizer.eos to name a special token"
        )
    spoken = copy.copy(tokenizer)
    known = {} if tokenizer.chat is None else tokenizer.chat.names
    text = PLAIN if template == "plain" else read_text(Path(template), SIZE_LIMIT, "a chat template")
    spoken.chat = Chat(text, known | names)
    return spoken


def dated(tokenizer: "Tokenizer") -> "Tokenizer":
    """The tokenizer of a run that begins: where its template tells the date, that stays today's, or conversations would
    have other ids tomorrow."""
    if tokenizer.chat is None or tokenizer.chat.date is not None or "strftime_now" not in tokenizer.chat.template:
        return tokenizer
    fixed = copy.copy(tokenizer)
    fixed.chat = replace(tokenizer.chat, date=datetime.date.today().isoformat())
    return fixed


class Spoken(NamedTuple):
    """What a template makes of messages."""

    text: str
    ids: np.ndarray


def chat_ids(tokenizer: "Tokenizer", messages: list[Message], *, reply: bool = True) -> np.ndarray:
    """The ids of a conversation, such as [{"role": "user", "content": "Hello"}]. reply: with what stands before the
    model's answer. Raises UserError where the tokenizer has no template, or the template refuses the messages."""
    return _spoken(tokenizer, messages, reply=reply).ids


def _spoken(tokenizer: "Tokenizer", messages: list[Message], *, reply: bool) -> Spoken:
    if tokenizer.chat is None:
        raise UserError(
            "this model's tokenizer has no chat template; expected one in tokenizer_config.json, or in training "
            "--tokenizer.chat_template=plain or =FILE.jinja"
        )
    specials = tokenizer.special_tokens()
    broken = _broken(messages, specials)
    spelt = broken != messages
    text = render(tokenizer.chat, broken, reply=reply)
    return Spoken(text, tokenizer.encode_broken(text) if spelt else tokenizer.encode_with_controls(text))


def by_pieces(tokenizer: "Tokenizer", text: str) -> np.ndarray:
    """The ids of what stands between special tokens written in the text, each encoded as a text, and of these. BREAK
    keeps a special token from being one, and is left out."""
    specials, ids = tokenizer.special_tokens(), []
    for piece in _split(text, specials):
        ids += [specials[piece]] if piece in specials else tokenizer.encode(piece.replace(BREAK, "")).tolist()
    return np.array(ids, np.int32)


def _broken(value, specials: dict[str, int]):
    """What messages say, with BREAK in every special token that it spells out: a template may write any of it, roles
    and the arguments of tools too."""
    if isinstance(value, dict):
        return {_broken(key, specials): _broken(one, specials) for key, one in value.items()}
    if isinstance(value, list):
        return [_broken(one, specials) for one in value]
    if isinstance(value, str):
        for token in sorted(specials, key=len, reverse=True):
            value = value.replace(token, token[0] + BREAK + token[1:])
    return value


def _split(text: str, specials: dict[str, int]) -> list[str]:
    """The text cut before and after every special token, the longest first."""
    pattern = "|".join(re.escape(token) for token in sorted(specials, key=len, reverse=True))
    return [piece for piece in re.split(f"({pattern})", text) if piece] if pattern else [text]


class Said(NamedTuple):
    """ids of a conversation, and which of them the assistant wrote."""

    ids: np.ndarray
    answered: np.ndarray


def said(tokenizer: "Tokenizer", messages: list[Message], first: int = 0) -> list[Said]:
    """A conversation up to its last answer. answered: what the template writes after the prompt for an answer, up to
    and with the control token that ends the turn. One, where the template only goes on with what it has written; else,
    as of those that leave out earlier thoughts, one for each answer as the model reads it when it is to write that one.
    first: answers before that message are only read. Raises UserError as `chat_ids`, and where the template does not
    write an answer behind its prompt for one."""
    turns = []
    for place, message in enumerate(messages):
        if message["role"] == "assistant" and place >= first:
            before = _spoken(tokenizer, messages[:place], reply=True)
            after = _spoken(tokenizer, messages[: place + 1], reply=False)
            if not after.text.startswith(before.text):
                raise UserError(
                    f"message {place + 1}: the chat template puts {before.text[-40:]!r} before an answer and then "
                    "writes the answer otherwise; expected a template that goes on from there"
                )
            turns.append((before, after))
    if not turns:
        raise UserError("no message of the assistant; expected an answer to learn")
    whole = turns[-1][1]
    together = all(whole.text.startswith(after.text) for _, after in turns)
    parts = [(whole, turns)] if together else [(turn[1], [turn]) for turn in turns]
    return [Said(one.ids, _answered(tokenizer, one.ids, answers)) for one, answers in parts]


def _answered(tokenizer: "Tokenizer", ids: np.ndarray, turns: list[tuple[Spoken, Spoken]]) -> np.ndarray:
    controls, found = list(tokenizer.special_tokens().values()), np.zeros(len(ids), bool)
    for before, after in turns:
        start, end = common(before.ids, ids), common(after.ids, ids)
        ends = np.flatnonzero(np.isin(ids[start:end], controls))
        # a line feed behind the end of a turn belongs to no answer; text behind a control token does
        if len(ends) and not tokenizer.decode(ids[start + ends[-1] + 1 : end]).strip():
            end = start + ends[-1] + 1
        found[start:end] = True
    return found


def common(one: np.ndarray, other: np.ndarray) -> int:
    """How many ids both begin with."""
    size = min(len(one), len(other))
    apart = np.flatnonzero(one[:size] != other[:size])
    return int(apart[0]) if len(apart) else size


def stops_of(tokenizer: "Tokenizer") -> tuple[int, ...]:
    """The ids that end an answer: the tokenizer's own, and the control token that its template puts there."""
    try:
        ((ids, answered),) = said(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    except UserError:  # a template that refuses so short a conversation
        return tokenizer.policy.stops
    last = int(ids[answered][-1]) if answered.any() else None
    ends = (last,) if last in tokenizer.special_tokens().values() else ()
    return tuple(dict.fromkeys(tokenizer.policy.stops + ends))


def render(chat: Chat, messages: list[Message], *, reply: bool) -> str:
    """What the template makes of the messages. Raises UserError where it fails, or takes too long or too much."""
    variables = chat.names | {"messages": messages, "add_generation_prompt": reply}
    answer = _renderer.ask({"template": chat.template, "variables": variables, "date": chat.date})
    if "refused" in answer:
        raise UserError(f"the chat template refuses: {' '.join(answer['refused'].split())[:300]}")
    return answer["text"]


class _Renderer:
    """The process that renders, begun when it is first asked and again after a template that it did not survive."""

    def __init__(self):
        self._process, self._one_at_a_time = None, threading.Lock()

    def ask(self, question: dict) -> dict:
        with self._one_at_a_time:
            if self._process is None or self._process.poll() is not None:
                file = Path(__file__).with_name("render_template.py")
                self._process = subprocess.Popen(
                    [sys.executable, "-I", str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )  # fmt: skip
            line = b""
            try:
                self._process.stdin.write(json.dumps(question).encode() + b"\n")
                self._process.stdin.flush()
                line = self._line(time.monotonic() + SECONDS)
            except BrokenPipeError:
                pass
            finally:
                # nor may what was asked before an interruption be answered to the next question
                if not (line or b"").endswith(b"\n"):
                    self._process.kill()
                    self._process.communicate()
            if line is None:
                raise UserError(f"the chat template took more than {SECONDS} s and was stopped")
            if not line.endswith(b"\n"):
                raise UserError("the chat template took too much memory or time and was stopped")
            return json.loads(line)

    def _line(self, until: float) -> bytes | None:
        """What the process answers, cut short where it ended; None where it does not until then."""
        pieces, out = [], self._process.stdout.fileno()
        while not pieces or not pieces[-1].endswith(b"\n"):
            if not select.select([out], [], [], max(0.0, until - time.monotonic()))[0]:
                return None
            if not (piece := os.read(out, 1 << 16)):
                break
            pieces.append(piece)
        return b"".join(pieces)


_renderer = _Renderer()
