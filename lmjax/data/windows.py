"""Windows onto a stream of tokens, addressed by index.

Window w of a pass with shift s reads tokens s + wT to s + wT + T of the stream: T inputs, and the same moved by one
as targets. Windows tile the stream, so every token after the first is a target exactly once. For tasks that hide tokens
the targets are the T tokens themselves, every one of the stream exactly once.

Documents may be kept apart: then a token sees only its own document, positions start again at 0 with each document
and each window, and a target in another document than its input weighs nothing.
"""

from dataclasses import dataclass

import grain
import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.store import TokenStream


@dataclass(frozen=True)
class Windows:
    """All windows of a stream, as `batches.Rows`: a row is known by the token at which its window starts. ahead: how
    many tokens behind each one its target stands, 1 or 0."""

    stream: TokenStream
    length: int
    apart: bool
    ahead: int = 1

    @property
    def text_bytes(self) -> int | None:
        # where not every token is predicted there are no bits of the whole text
        return self.stream.text_bytes if self.ahead else None

    def obstacle(self) -> str | None:
        """Why there is nothing here to evaluate."""
        if self.count and self.stream.text_bytes:
            return None
        needed = 1 + self.ahead
        return f"the text to evaluate has {self.stream.size} token(s); scoring needs at least {needed}, and some text"

    @property
    def count(self) -> int:
        """How many windows hold every target, the last one perhaps not full."""
        return max(0, -(-(self.stream.size - self.ahead) // self.length))

    def protocol(self) -> str:
        if not self.ahead:
            documents = "apart" if self.apart else "joined"
            return (
                f"windows of {self.length} (no overlap), documents {documents}; which tokens are hidden is the same at "
                "every evaluation, in every run with this tokenizer, length and share"
            )
        start = f"first token of {'each document' if self.apart else 'the text'} not scored"
        if self.stream.bos is not None:
            start = "BOS before each document, not scored"
        documents = "apart" if self.apart else "joined"
        return f"context {self.length}, stride {self.length} (no overlap), {start}, documents {documents}"

    def endless(self, order_seed: int, shift_seed: int) -> grain.MapDataset:
        """Full windows: each once a pass, every pass in another order and moved by another shift, so that a token is
        not always at the same place of its window."""
        full = (self.stream.size - self.ahead) // self.length
        # one window fewer leaves room to shift; a short text cannot spare it
        full -= full >= 16
        room = self.stream.size - self.ahead - full * self.length

        def start(index: int, window: int) -> int:
            shift = np.random.default_rng([shift_seed, index // full]).integers(room + 1) if room else 0
            return int(shift) + window * self.length

        return grain.MapDataset.range(full).seed(order_seed).shuffle().repeat().map_with_index(start)

    def read(self, starts_B: np.ndarray) -> Batch:
        return read(self.stream, starts_B, self.length, apart=self.apart, ahead=self.ahead)

    def in_order(self, rows: int, part: np.ndarray | None = None):
        """All windows that hold a target; rows beyond the last window are padding."""
        total, part = self.count, np.arange(rows) if part is None else part
        for first in range(0, total, rows):
            starts = (first + part) * self.length
            starts[first + part >= total] = self.stream.size
            yield self.read(starts)


def read(stream: TokenStream, starts_B: np.ndarray, length: int, *, apart: bool, ahead: int = 1) -> Batch:
    """The windows that start at these tokens; what lies beyond the stream is padding of weight 0, and of segment 0
    where a model may look ahead to it."""
    index_BS = starts_B[:, None] + np.arange(length + ahead)
    inside_BS = (index_BS >= 0) & (index_BS < stream.size)
    index_BS = np.where(inside_BS, index_BS, 0)
    ids_BS = np.where(inside_BS, stream.gather(index_BS), 0)
    document_BS = np.searchsorted(stream.starts, index_BS, side="right")
    first_BS = stream.starts[document_BS - 1] == index_BS
    weights_BT = inside_BS[:, :length] & inside_BS[:, ahead:]
    if stream.bos is not None:
        # BOS is given, never predicted
        weights_BT = weights_BT & ~(first_BS[:, ahead:] & (ids_BS[:, ahead:] == stream.bos))
    positions_BT = np.broadcast_to(np.arange(length), weights_BT.shape)
    segments_BT = None if ahead else inside_BS.astype(np.int32)
    if apart:
        if ahead:
            weights_BT = weights_BT & ~first_BS[:, 1:]
        segments_BT = np.where(inside_BS, document_BS - document_BS[:, :1] + 1, 0)[:, :length].astype(np.int32)
        opening_BT = np.where(first_BS[:, :length], positions_BT, 0)
        positions_BT = positions_BT - np.maximum.accumulate(opening_BT, axis=1)
    return Batch(
        tokens_BT=np.ascontiguousarray(ids_BS[:, :length]),
        positions_BT=np.ascontiguousarray(positions_BT, np.int32),
        segments_BT=segments_BT,
        targets_BT=np.ascontiguousarray(ids_BS[:, ahead:]),
        weights_BT=weights_BT.astype(np.float32),
    )
