"""The kinds of tokenizers, each as it encodes, decodes and is stored."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from lmjax.errors import UserError
from lmjax.tokenizers.chat import BREAK, Chat, by_pieces
from lmjax.tokenizers.passages import MASKS

POLICY_FILE = "policy.json"
CHAT_FILE = "chat.json"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Which control tokens stand around a document; None: none. other_stops: those that end a generated text,
    where these are others than eos. mask: stands where a masked task hides a token. Stored with the run."""

    bos: int | None = None
    eos: int | None = None
    other_stops: tuple[int, ...] = ()
    mask: int | None = None

    @property
    def stops(self) -> tuple[int, ...]:
        return self.other_stops or (() if self.eos is None else (self.eos,))


class Tokenizer:
    """encode(text) -> ids and decode(ids) -> text, without control tokens; `files` is what `save` writes. chat: how
    conversations are written; None: nobody says. names: of special tokens, such as pad_token, as the files that it was
    read from have them."""

    kind: ClassVar[str]
    vocab_size: int
    policy: Policy
    chat: Chat | None = None
    names: Mapping[str, str] = MappingProxyType({})

    def special_tokens(self) -> dict[str, int]:
        """The tokens that are never text, by what chat templates call them, and their ids."""
        return {}

    def encode_with_controls(self, text: str) -> np.ndarray:
        """The ids where special tokens written in the text are special: for templates, never for a user's words."""
        return by_pieces(self, text)

    def encode_broken(self, text: str) -> np.ndarray:
        """The same of a text in which BREAK keeps special tokens that a user has written from being special."""
        return by_pieces(self, text)

    def takes_spaces(self, token: int) -> tuple[bool, bool]:
        """Whether spaces before a control token, and those behind it, are read as a part of it."""
        return False, False

    def encode(self, text: str) -> np.ndarray:
        raise TypeError("each kind says this")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids; control tokens give none. Ids that make no UTF-8 become U+FFFD."""
        raise TypeError("each kind says this")

    def controls(self) -> set[int]:
        """The ids that no ordinary text has: control tokens, and the unknown one of kinds that have it."""
        raise TypeError("each kind says this")

    @cached_property
    def files(self) -> dict[str, bytes]:
        raise TypeError("each kind says this")

    def encode_document(self, text: str) -> np.ndarray:
        """The ids of a whole document, with BOS before and EOS after where the policy has them."""
        ids = self.encode(text)
        before = [] if self.policy.bos is None else [self.policy.bos]
        after = [] if self.policy.eos is None else [self.policy.eos]
        return np.concatenate([np.array(before, ids.dtype), ids, np.array(after, ids.dtype)])

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (directory / name).write_bytes(content)
        policy = {"kind": self.kind} | vars(self.policy) | {"names": dict(self.names)}
        (directory / POLICY_FILE).write_text(json.dumps(policy, indent=2) + "\n")
        if self.chat is not None:
            (directory / CHAT_FILE).write_text(json.dumps(vars(self.chat), indent=2) + "\n", encoding="utf-8")

    def identity(self) -> list:
        """What decides the ids that a text gets, for fingerprints."""
        return [self.kind, self.policy.bos, self.policy.eos, *self.files.items()]


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the bytes of UTF-8; 256 is BOS, 257 EOS, and 258 the mask where there is one."""

    kind = "Bytes"
    files = {}

    def __init__(self, policy: Policy):
        self.policy = policy
        self.vocab_size = 258 + (policy.mask is not None)

    def special_tokens(self):
        return {"<s>": 256, "</s>": 257}

    def encode(self, text):
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, ids):
        return bytes(int(i) for i in ids if i < 256).decode("utf-8", errors="replace")

    def controls(self):
        return set(range(256, self.vocab_size))


class CharacterTokenizer(Tokenizer):
    """One id a character of a fixed list, in code-point order, as nanoGPT's prepare.py; the next one is the mask where
    there is one."""

    kind = "Characters"

    def __init__(self, characters: str, policy: Policy):
        self.characters = characters
        self.policy = policy
        self.vocab_size = len(characters) + (policy.mask is not None)
        self._codes = np.array([ord(c) for c in characters], np.uint32)

    def encode(self, text):
        codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)
        ids = np.searchsorted(self._codes, codes)
        wrong = self._codes[np.minimum(ids, len(self._codes) - 1)] != codes
        if wrong.any():
            at = int(wrong.argmax())
            raise UserError(
                f"character {text[at]!r} at position {at} is not among the {len(self.characters)} of this tokenizer"
            )
        return ids.astype(np.int32)

    def decode(self, ids):
        return "".join(self.characters[int(i)] for i in ids if i != self.policy.mask)

    def controls(self):
        return set(range(len(self.characters), self.vocab_size))

    @cached_property
    def files(self):
        return {"characters.json": json.dumps(self.characters).encode()}


# SentencePiece writes a space as U+2581 and reads that as a space; the character itself travels as bytes
_META_SPACE = "\u2581"


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model (arXiv:1808.06226). Exact for any text where the model has byte fallback and no
    normalisation, as those trained here have."""

    kind = "SentencePiece"

    def __init__(self, model: bytes, policy: Policy):
        import sentencepiece

        self.model = model
        self.policy = policy
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self.processor.vocab_size()
        self.meta_ids = [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in _META_SPACE.encode()]
        self._has_bytes = self.processor.is_byte(self.meta_ids[0])

    def encode(self, text):
        ids = [i for part in self.parts(text) for i in (*self.meta_ids, *self.processor.encode(part))]
        return np.array(ids[len(self.meta_ids) :], np.int32)

    def parts(self, text: str) -> list[str]:
        """What the processor reads, one after another; between two of them stands one character, `meta_ids`."""
        return text.split(_META_SPACE) if self._has_bytes else [text]

    def decode(self, ids):
        return self.processor.decode([int(i) for i in ids if not self.processor.is_control(int(i))])

    def controls(self):
        said = self.processor
        return {i for i in range(self.vocab_size) if said.is_control(i) or said.is_unknown(i) or said.is_unused(i)}

    def control_ids(self) -> dict[str, int]:
        """Of bos, eos and the mask, -1 where the model has none."""
        named = {self.processor.id_to_piece(i): i for i in self.controls()}
        mask = next((named[name] for name in MASKS if name in named), -1)
        return {"bos": self.processor.bos_id(), "eos": self.processor.eos_id(), "mask": mask}

    def special_tokens(self):
        ends = (self.processor.bos_id(), self.processor.eos_id())
        return {self.processor.id_to_piece(index): index for index in ends if index >= 0}

    @cached_property
    def files(self):
        return {"tokenizer.model": self.model}


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json as the tokenizers library reads it. Special tokens written in a text are encoded as text."""

    kind = "HuggingFace"

    def __init__(
        self, serialised: str, policy: Policy, chat: Chat | None = None, names: Mapping[str, str] = MappingProxyType({})
    ):
        import tokenizers

        self.chat, self.names = chat, names
        self._tokenizer = tokenizers.Tokenizer.from_str(serialised)
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._serialised = serialised
        self.policy = policy
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)

    def encode(self, text):
        return np.array(self.encoding(text).ids, np.int32)

    def encoding(self, first: str, second: str | None = None):
        """The library's Encoding of a text without control tokens, or of two as the file's template has them."""
        return self._tokenizer.encode(first, second, add_special_tokens=second is not None)

    @property
    def joins(self) -> bool:
        """Whether the file has a template for two texts."""
        return self._tokenizer.num_special_tokens_to_add(is_pair=True) > 0

    def encode_with_controls(self, text):
        return np.array(self._with_controls(text).ids, np.int32)

    def _with_controls(self, text: str):
        self._tokenizer.encode_special_tokens = False
        try:
            return self.encoding(text)
        finally:
            self._tokenizer.encode_special_tokens = True

    def encode_broken(self, text):
        """The whole text is encoded at one time, as one without BREAK is, so that it has other ids nowhere else."""
        found, of_break, ids = self._with_controls(text), set(self.encode(BREAK).tolist()), []
        for index, (start, end) in zip(found.ids, found.offsets, strict=True):
            piece = text[start:end]
            if BREAK not in piece:
                ids.append(index)
            elif piece.strip(BREAK) or index not in of_break:
                # a token that has more of the text than BREAK
                return by_pieces(self, text)
        by_parts, controls = by_pieces(self, text), list(self.special_tokens().values())
        # a normaliser may have left BREAK out before special tokens were looked for
        same = [i for i in ids if i in controls] == [i for i in by_parts.tolist() if i in controls]
        return np.array(ids, np.int32) if same else by_parts

    def around(self) -> tuple[list[int], list[int]]:
        """What the file itself puts before and after a text."""
        whole, bare = (self._tokenizer.encode("a", add_special_tokens=special).ids for special in (True, False))
        at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        return whole[:at], whole[at + len(bare) :]

    def controls(self):
        return set(self.special_tokens().values())

    def mask_id(self) -> int | None:
        """Of the special token that is called as masks are; None where there is none."""
        named = self.special_tokens()
        return next((named[name] for name in MASKS if name in named), None)

    def special_tokens(self):
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: index for index, token in added.items() if token.special}

    def takes_spaces(self, token):
        added = self._tokenizer.get_added_tokens_decoder().get(token)
        return (False, False) if added is None else (added.lstrip, added.rstrip)

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def decode(self, ids):
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    @cached_property
    def files(self):
        return {"tokenizer.json": self._serialised.encode()}
