"""Documents as token ids: tokenised once, in parallel, into files that are mapped into memory.

A store is a directory named by a fingerprint of the documents and the tokenizer:
    manifest.json            version, type of the ids, tokens of each shard, bytes of text, for each split
    SPLIT-00000.bin ...      shards of uint16 or uint32
    SPLIT-documents.npy      where each document starts
"""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmjax.cache import built_whole, cache_root
from lmjax.data.sources import Source
from lmjax.errors import UserError
from lmjax.places import in_order
from lmjax.tokenizers import Tokenizer

VERSION = 1
SPLITS = ("train", "held_out")
SHARD_TOKENS = 1 << 28
WORKERS = 4


@dataclass(frozen=True)
class TokenStream:
    """All documents of a split, one after another.

    shards: arrays of ids. starts: index of each document's first token. text_bytes: UTF-8 bytes of the
    text, control tokens not counted. bos: the id that starts a document, which is never a target; None: there is none.
    """

    shards: tuple[np.ndarray, ...]
    starts: np.ndarray
    text_bytes: int
    bos: int | None

    @property
    def size(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """The ids at these indices, any shape, as int32."""
        if len(self.shards) == 1:
            return self.shards[0][indices].astype(np.int32)
        bounds = np.cumsum([0] + [len(shard) for shard in self.shards])
        which = np.searchsorted(bounds, indices, side="right") - 1
        ids = np.empty(indices.shape, np.int32)
        for k in np.unique(which):
            here = which == k
            ids[here] = self.shards[k][indices[here] - bounds[k]]
        return ids


def stream_of(texts: Iterable[str], tokenizer: Tokenizer) -> TokenStream:
    """A stream in memory, for texts that are read once."""
    texts = [text for text in texts if text]
    with ThreadPoolExecutor(WORKERS) as pool:
        documents = list(pool.map(tokenizer.encode_document, texts))
    lengths = [len(ids) for ids in documents]
    ids = np.concatenate([*documents, np.zeros(0, np.int32)])
    starts = np.cumsum([0, *lengths])[:-1].astype(np.int64)
    return TokenStream((ids,), starts, sum(len(t.encode()) for t in texts), tokenizer.policy.bos)


def fingerprint(source: Source, tokenizer: Tokenizer) -> str:
    """Of what decides a store's content: every document's name, text and split, and the tokenizer."""
    digest = hashlib.sha256(f"lmjax store {VERSION}".encode())
    for part in tokenizer.identity():
        content = part[1] if isinstance(part, tuple) else repr(part).encode()
        digest.update(f"{len(content)} ".encode() + content)
    for split, document in source.split():
        text = document.text.encode("utf-8")
        digest.update(f"\0{split} {len(text)} {document.name}\0".encode("utf-8", "surrogateescape"))
        digest.update(text)
    return digest.hexdigest()[:32]


def joined(streams: list[TokenStream]) -> TokenStream:
    """Streams one after another, as one."""
    before = np.cumsum([0] + [stream.size for stream in streams])
    return TokenStream(
        tuple(shard for stream in streams for shard in stream.shards),
        np.concatenate([stream.starts + size for stream, size in zip(streams, before[:-1], strict=True)]),
        sum(stream.text_bytes for stream in streams),
        streams[0].bos,
    )


class Store:
    """An opened store. Raises UserError where a file is missing or has the wrong size."""

    def __init__(self, directory: Path, reused: bool):
        self.directory, self.reused = directory, reused
        try:
            self.manifest = json.loads((directory / "manifest.json").read_text())
        except ValueError:
            raise UserError(f"{directory / 'manifest.json'}: damaged; remove {directory} and start again") from None
        self.fingerprint = directory.name

    def stream(self, split: str) -> TokenStream:
        entry = self.manifest[split]
        shards = []
        for index, tokens in enumerate(entry["shards"]):
            file = self.directory / f"{split}-{index:05}.bin"
            size = np.dtype(self.manifest["dtype"]).itemsize * tokens
            if not file.is_file() or file.stat().st_size != size:
                raise UserError(f"{file}: expected {size} bytes; remove {self.directory} and start again")
            # an empty file cannot be mapped
            empty = np.zeros(0, self.manifest["dtype"])
            shards.append(np.memmap(file, self.manifest["dtype"], "r", shape=(tokens,)) if tokens else empty)
        file = self.directory / f"{split}-documents.npy"
        try:
            starts = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise UserError(f"{file}: damaged; remove {self.directory} and start again") from None
        return TokenStream(tuple(shards), starts, entry["text_bytes"], self.manifest["bos"])


def kept_store(name: str) -> Store | None:
    """That with this fingerprint, where it is in the cache; its text is not read."""
    directory = cache_root() / "tokens" / name
    return Store(directory, reused=True) if (directory / "manifest.json").is_file() else None


def open_store(source: Source, tokenizer: Tokenizer, known: str | None = None) -> Store:
    """The store of this source and tokenizer, made where it is not there yet. known: its fingerprint, as process 0
    found it; the text is then read only where the store is not in this host's cache. Raises UserError where that text
    is another."""
    stores = cache_root() / "tokens"
    reused = known is not None and (stores / known / "manifest.json").is_file()
    name = known if reused else fingerprint(source, tokenizer)
    if known not in (None, name):
        raise UserError("data.source: this process reads another text than process 0")
    directory = stores / name
    reused = (directory / "manifest.json").is_file()
    if not reused:
        with built_whole(directory) as scratch:
            _write(scratch, source, tokenizer)
    return Store(directory, reused)


def _write(directory: Path, source: Source, tokenizer: Tokenizer) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    manifest = {"version": VERSION, "dtype": dtype.name, "bos": tokenizer.policy.bos}
    writers = {split: _SplitWriter(directory, split, dtype) for split in SPLITS}

    def encode(item):
        split, document = item
        return split, tokenizer.encode_document(document.text), len(document.text.encode("utf-8"))

    for split, ids, size in in_order(encode, source.split(), WORKERS, 8 * WORKERS):
        if size:
            writers[split].add(ids, size)
    for split, writer in writers.items():
        manifest[split] = writer.finish()
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=2))


class _SplitWriter:
    def __init__(self, directory: Path, split: str, dtype: np.dtype):
        self.directory, self.split, self.dtype = directory, split, dtype
        self.shards, self.starts, self.tokens, self.text_bytes = [], [], 0, 0
        self.file = None

    def add(self, ids: np.ndarray, text_bytes: int) -> None:
        self.starts.append(self.tokens)
        self.tokens += len(ids)
        self.text_bytes += text_bytes
        if self.file is None or self.shards[-1] + len(ids) > SHARD_TOKENS:
            self._next_shard()
        self.file.write(ids.astype(self.dtype).tobytes())
        self.shards[-1] += len(ids)

    def _next_shard(self) -> None:
        if self.file:
            self.file.close()
        self.file = open(self.directory / f"{self.split}-{len(self.shards):05}.bin", "wb")
        self.shards.append(0)

    def finish(self) -> dict:
        if self.file is None:
            self._next_shard()
        self.file.close()
        np.save(self.directory / f"{self.split}-documents.npy", np.array(self.starts, np.int64))
        return {
            "tokens": self.tokens,
            "documents": len(self.starts),
            "text_bytes": self.text_bytes,
            "shards": self.shards,
        }
