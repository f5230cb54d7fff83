"""Text to token ids and back: Bytes, Characters, SentencePiece, Hugging Face files.

The configuration (a frozen dataclass) says which; `build` makes the tokenizer from it, `load` from a run directory.
Ordinary text never yields a control token: the ids of BOS and EOS are only ever added by `encode_document`.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lmjax.errors import UserError
from lmjax.tokenizers.byte_level import byte_level_bpe
from lmjax.tokenizers.chat import Chat, chat_of, names_of, with_template
from lmjax.tokenizers.kinds import (
    CHAT_FILE,
    POLICY_FILE,
    ByteTokenizer,
    CharacterTokenizer,
    HuggingFaceTokenizer,
    Policy,
    SentencePieceTokenizer,
    Tokenizer,
)
from lmjax.tokenizers.passages import trained_pieces

# of what `Tokenizer.save` writes: caches of another are not looked at
FORMAT = 4


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
    """No training, no unknown text: 256 bytes and two control tokens. mask: whether there is a third one that hides
    others, for masked tasks."""

    bos: bool = False
    eos: bool = False
    mask: bool = False
    needs_text: ClassVar[bool] = False

    def _build(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        ids = {"bos": 256, "eos": 257, "mask": 258}
        return ByteTokenizer(Policy(**{name: index for name, index in ids.items() if getattr(self, name)}))


@dataclass(frozen=True, kw_only=True)
class Characters(Chatting):
    """The characters that occur in the text, held-out part included. mask: as of Bytes."""

    mask: bool = False
    needs_text: ClassVar[bool] = True

    def _build(self, texts: Callable[[], Iterable[str]]) -> Tokenizer:
        characters = set()
        for text in texts():
            characters.update(text)
        return CharacterTokenizer("".join(sorted(characters)), Policy(mask=len(characters) if self.mask else None))


@dataclass(frozen=True, kw_only=True)
class SentencePiece(Chatting):
    """A .model file, or where no path is given one trained on the training text (about `sample_bytes` of it).

    bos, eos: whether a document gets the model's own control tokens. mask: whether there is one that hides others, for
    masked tasks; one of the vocab_size, or in a .model file the control token <mask> or [MASK].
    """

    path: str | None = None
    vocab_size: int = 4096
    algorithm: str = "bpe"
    sample_bytes: int = 16_000_000
    bos: bool = True
    eos: bool = True
    mask: bool = False

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
            model = trained_pieces(texts(), self.algorithm, self.vocab_size, self.sample_bytes, mask=self.mask)
        else:
            model = _read(self.path)
        wanted = {"bos": self.bos, "eos": self.eos, "mask": self.mask}
        return sentencepiece_tokenizer(model, **wanted, where=self.path or "the trained model")


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Chatting):
    """A directory with tokenizer.json, or with vocab.json and merges.txt as GPT-2 ships; or such a .json file.

    bos, eos: the control token's text, such as "<|endoftext|>", that a document gets before or after it; None: that
    which the file itself puts there, if it does; "": none.
    mask: that of the one that hides others, for masked tasks; None: <mask> or [MASK], where it is a special token.
    """

    path: str
    bos: str | None = None
    eos: str | None = None
    mask: str | None = None
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
            before, after = bare.around()
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"tokenizer: {single}: not a tokenizer file: {error}") from None
        mask = bare.mask_id()
        usual = {"bos": before, "eos": after, "mask": [] if mask is None else [mask]}
        ids = {name: self._control(bare, name, its_own) for name, its_own in usual.items()}
        directory = path if path.is_dir() else path.parent
        chat = chat_of(directory) if path.is_dir() else None
        return HuggingFaceTokenizer(serialised, Policy(**ids), chat, names_of(directory))

    def _control(self, tokenizer: HuggingFaceTokenizer, name: str, its_own: list[int]) -> int | None:
        token = getattr(self, name)
        if token is None and len(its_own) > 1:
            found = f"{self.path} puts {len(its_own)} tokens there"
            raise UserError(f'tokenizer.{name}: {found}; expected the text of one, or "" for none')
        if not token:
            return next(iter(its_own), None) if token is None else None
        index = tokenizer.id_of(token)
        if index is None:
            raise UserError(f"tokenizer.{name}: {token!r} is not in the vocabulary of {self.path}")
        return index


TokenizerConfig = Bytes | Characters | SentencePiece | HuggingFace


def sentencepiece_tokenizer(
    model: bytes, *, bos: bool, eos: bool, mask: bool = False, where: str
) -> SentencePieceTokenizer:
    """A tokenizer of a serialised model, with the model's own control ids. Raises UserError where it has none."""
    try:
        found = SentencePieceTokenizer(model, Policy()).control_ids()
    except RuntimeError:
        raise UserError(f"tokenizer: {where}: not a SentencePiece model") from None
    ids = {name: found[name] for name, wanted in (("bos", bos), ("eos", eos), ("mask", mask)) if wanted}
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
    # runs from before there were masked tasks do not say a mask
    ids = {name: stored.get(name) for name in ("bos", "eos", "mask")}
    policy = Policy(**ids, other_stops=tuple(stored["other_stops"]))
    match stored["kind"]:
        case "Bytes":
            return ByteTokenizer(policy)
        case "Characters":
            return CharacterTokenizer(json.loads(_read(directory / "characters.json")), policy)
        case "SentencePiece":
            return SentencePieceTokenizer(_read(directory / "tokenizer.model"), policy)
        case "HuggingFace":
            serialised = _read(directory / "tokenizer.json").decode()
            return HuggingFaceTokenizer(serialised, policy, names=stored.get("names", {}))
    raise UserError(f"{directory / POLICY_FILE}: unknown kind of tokenizer {stored['kind']!r}")


def _read(path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"tokenizer: {path}: {error.strerror}") from None
