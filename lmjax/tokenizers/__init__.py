"""Text to token ids and back: Bytes, Characters, SentencePiece, Hugging Face files.

The configuration (a frozen dataclass) says which; `build` makes the tokenizer from it, `load` from a run directory.
Ordinary text never yields a control token: the ids of BOS and EOS are only ever added by `encode_document`.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from lmjax.errors import UserError
from lmjax.tokenizers.byte_level import byte_level_bpe
from lmjax.tokenizers.chat import Chat, by_pieces, chat_of, with_template
from lmjax.tokenizers.passages import trained_pieces

POLICY_FILE = "policy.json"
# of what `save` writes: caches of another are not looked at
FORMAT = 2
CHAT_FILE = "chat.json"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Which control tokens stand around a document; None: none. other_stops: those that end a generated text,
    where these are others than eos. Stored with the run."""

    bos: int | None = None
    eos: int | None = None
    other_stops: tuple[int, ...] = ()

    @property
    def stops(self) -> tuple[int, ...]:
        return self.other_stops or (() if self.eos is None else (self.eos,))


class Tokenizer:
    """encode(text) -> ids and decode(ids) -> text, without control tokens; `files` is what `save` writes. chat: how
    conversations are written; None: nobody says."""

    kind: ClassVar[str]
    vocab_size: int
    policy: Policy
    chat: Chat | None = None

    def special_tokens(self) -> dict[str, int]:
        """The tokens that are never text, by what chat templates call them, and their ids."""
        return {}

    def encode_with_controls(self, text: str) -> np.ndarray:
        """The ids where special tokens written in the text are special: for templates, never for a user's words."""
        return by_pieces(self, text)

    def encode(self, text: str) -> np.ndarray:
        raise TypeError("each kind says this")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids; control tokens give none. Ids that make no UTF-8 become U+FFFD."""
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
        policy = {"kind": self.kind} | vars(self.policy)
        (directory / POLICY_FILE).write_text(json.dumps(policy, indent=2) + "\n")
        if self.chat is not None:
            (directory / CHAT_FILE).write_text(json.dumps(vars(self.chat), indent=2) + "\n", encoding="utf-8")

    def identity(self) -> list:
        """What decides the ids that a text gets, for fingerprints."""
        return [self.kind, self.policy.bos, self.policy.eos, *self.files.items()]


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the bytes of UTF-8; 256 is BOS and 257 EOS."""

    kind = "Bytes"
    vocab_size = 258
    files = {}

    def __init__(self, policy: Policy):
        self.policy = policy

    def special_tokens(self):
        return {"<s>": 256, "</s>": 257}

    def encode(self, text):
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, ids):
        return bytes(int(i) for i in ids if i < 256).decode("utf-8", errors="replace")


class CharacterTokenizer(Tokenizer):
    """One id a character of a fixed list, in code-point order, as nanoGPT's prepare.py."""

    kind = "Characters"

    def __init__(self, characters: str, policy: Policy):
        self.characters = characters
        self.policy = policy
        self.vocab_size = len(characters)
        self._codes = np.array([ord(c) for c in characters], np.uint32)

    def encode(self, text):
        codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)
        ids = np.searchsorted(self._codes, codes)
        wrong = self._codes[np.minimum(ids, len(self._codes) - 1)] != codes
        if wrong.any():
            at = int(wrong.argmax())
            raise UserError(
                f"character {text[at]!r} at position {at} is not among the {self.vocab_size} of this tokenizer"
            )
        return ids.astype(np.int32)

    def decode(self, ids):
        return "".join(self.characters[int(i)] for i in ids)

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

    def control_ids(self) -> dict[str, int]:
        """Of bos and eos, -1 where the model has none."""
        return {"bos": self.processor.bos_id(), "eos": self.processor.eos_id()}

    def special_tokens(self):
        return {self._processor.id_to_piece(index): index for index in self.control_ids().values() if index >= 0}

    @cached_property
    def files(self):
        return {"tokenizer.model": self.model}


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json as the tokenizers library reads it. Special tokens written in a text are encoded as text."""

    kind = "HuggingFace"

    def __init__(self, serialised: str, policy: Policy, chat: Chat | None = None):
        import tokenizers

        self.chat = chat
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
        self._tokenizer.encode_special_tokens = False
        try:
            return self.encode(text)
        finally:
            self._tokenizer.encode_special_tokens = True

    def around(self) -> tuple[list[int], list[int]]:
        """What the file itself puts before and after a text."""
        whole, bare = (self._tokenizer.encode("a", add_special_tokens=special).ids for special in (True, False))
        at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        return whole[:at], whole[at + len(bare) :]

    def special_tokens(self):
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: index for index, token in added.items() if token.special}

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def decode(self, ids):
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    @cached_property
    def files(self):
        return {"tokenizer.json": self._serialised.encode()}


@dataclass(frozen=True, kw_only=True)
class Chatting:
    """chat_template: how conversations are written: a file in Jinja; "plain": role, text and EOS of each message; None:
    as the tokenizer's files say, if they do."""

    chat_template: str | None = None

    def build(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        """Raises UserError where a file cannot be read, or nothing can be learnt from the texts."""
        return with_template(self._build(texts), self.chat_template)


@dataclass(frozen=True, kw_only=True)
class Bytes(Chatting):
    """No training, no unknown text: 256 bytes and two control tokens."""

    bos: bool = False
    eos: bool = False
    needs_text: ClassVar[bool] = False

    def _build(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        return ByteTokenizer(Policy(bos=256 if self.bos else None, eos=257 if self.eos else None))


@dataclass(frozen=True, kw_only=True)
class Characters(Chatting):
    """The characters that occur in the text, held-out part included."""

    needs_text: ClassVar[bool] = True

    def _build(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        characters = set()
        for text in texts():
            characters.update(text)
        return CharacterTokenizer("".join(sorted(characters)), Policy())


@dataclass(frozen=True, kw_only=True)
class SentencePiece(Chatting):
    """A .model file, or where no path is given one trained on the training text (about `sample_bytes` of it).

    bos, eos: whether a document gets the model's own control tokens.
    """

    path: str | None = None
    vocab_size: int = 4096
    algorithm: str = "bpe"
    sample_bytes: int = 16_000_000
    bos: bool = True
    eos: bool = True

    def __post_init__(self):
        if self.algorithm not in ("bpe", "unigram"):
            raise ValueError(f"algorithm is {self.algorithm!r}; expected bpe or unigram")
        if self.vocab_size < 300:
            raise ValueError(f"vocab_size is {self.vocab_size}; 256 bytes and the control tokens need at least 300")

    @property
    def needs_text(self) -> bool:
        return self.path is None

    def _build(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        if self.path is None:
            model = trained_pieces(texts(), self.algorithm, self.vocab_size, self.sample_bytes)
        else:
            model = _read(self.path)
        return sentencepiece_tokenizer(model, bos=self.bos, eos=self.eos, where=self.path or "the trained model")


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Chatting):
    """A directory with tokenizer.json, or with vocab.json and merges.txt as GPT-2 ships; or such a .json file.

    bos, eos: the control token's text, such as "<|endoftext|>", that a document gets before or after it; None: none.
    """

    path: str
    bos: str | None = None
    eos: str | None = None
    needs_text: ClassVar[bool] = False

    def _build(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        path = Path(self.path)
        single = path if path.is_file() else path / "tokenizer.json"
        if single.is_file():
            serialised = _read(single).decode("utf-8", errors="replace")
        elif (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
            serialised = byte_level_bpe(path)
        else:
            raise UserError(
                f"tokenizer: {self.path}: expected a tokenizer.json, or a directory with vocab.json and merges.txt"
            )
        try:
            bare = HuggingFaceTokenizer(serialised, Policy())
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"tokenizer: {single}: not a tokenizer file: {error}") from None
        ids = {name: self._control(bare, name) for name in ("bos", "eos")}
        return HuggingFaceTokenizer(serialised, Policy(**ids), chat_of(path) if path.is_dir() else None)

    def _control(self, tokenizer: HuggingFaceTokenizer, name: str) -> int | None:
        token = getattr(self, name)
        if token is None:
            return None
        index = tokenizer.id_of(token)
        if index is None:
            raise UserError(f"tokenizer.{name}: {token!r} is not in the vocabulary of {self.path}")
        return index


TokenizerConfig = Bytes | Characters | SentencePiece | HuggingFace


def sentencepiece_tokenizer(model: bytes, *, bos: bool, eos: bool, where: str) -> SentencePieceTokenizer:
    """A tokenizer of a serialised model, with the model's own control ids. Raises UserError where it has none."""
    try:
        found = SentencePieceTokenizer(model, Policy()).control_ids()
    except RuntimeError:
        raise UserError(f"tokenizer: {where}: not a SentencePiece model") from None
    ids = {name: found[name] for name, wanted in (("bos", bos), ("eos", eos)) if wanted}
    for name, index in ids.items():
        if index < 0:
            raise UserError(f"tokenizer.{name}: {where} has no {name} token")
    return SentencePieceTokenizer(model, Policy(**ids))


def load(directory: Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote. Raises UserError where a file is missing or damaged."""
    try:
        tokenizer, chat = _loaded(directory), directory / CHAT_FILE
        if chat.is_file():
            tokenizer.chat = Chat(**json.loads(_read(chat)))
        return tokenizer
    except UserError:
        raise
    except Exception as error:  # each library raises kinds of its own, tokenizers bare Exception
        raise UserError(f"{directory}: damaged tokenizer: {' '.join(str(error).split())}") from None


def _loaded(directory: Path) -> Tokenizer:
    stored = json.loads(_read(directory / POLICY_FILE))
    policy = Policy(bos=stored["bos"], eos=stored["eos"], other_stops=tuple(stored["other_stops"]))
    match stored["kind"]:
        case "Bytes":
            return ByteTokenizer(policy)
        case "Characters":
            return CharacterTokenizer(json.loads(_read(directory / "characters.json")), policy)
        case "SentencePiece":
            return SentencePieceTokenizer(_read(directory / "tokenizer.model"), policy)
        case "HuggingFace":
            return HuggingFaceTokenizer(_read(directory / "tokenizer.json").decode(), policy)
    raise UserError(f"{directory / POLICY_FILE}: unknown kind of tokenizer {stored['kind']!r}")


def _read(path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"tokenizer: {path}: {error.strerror}") from None
