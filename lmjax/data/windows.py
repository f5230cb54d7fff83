"""Windows onto a stream of tokens, addressed by index.

Window w of a pass with shift s reads tokens s + wT to s + wT + T of the stream: T inputs, and the same moved by one
as targets. Windows tile the stream, so every token after the first is a target exactly once.

Documents may be kept apart: then a token sees only its own document, positions start again at 0 with each document
and each window, and a target in another document than its input weighs nothing.
"""

import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.store import TokenStream


def count(stream: TokenStream, length: int) -> int:
    """How many windows hold every target, the last one perhaps not full."""
    return max(0, -(-(stream.size - 1) // length))


def read(stream: TokenStream, starts_B: np.ndarray, length: int, *, apart: bool) -> Batch:
    """The windows that start at these tokens; what lies beyond the stream is padding of weight 0."""
    index_BS = starts_B[:, None] + np.arange(length + 1)
    inside_BS = (index_BS >= 0) & (index_BS < stream.size)
    index_BS = np.where(inside_BS, index_BS, 0)
    ids_BS = np.where(inside_BS, stream.gather(index_BS), 0)
    document_BS = np.searchsorted(stream.starts, index_BS, side="right")
    first_BS = stream.starts[document_BS - 1] == index_BS
    weights_BT = inside_BS[:, :-1] & inside_BS[:, 1:]
    if stream.bos is not None:
        # BOS is given, never predicted
        weights_BT = weights_BT & ~(first_BS[:, 1:] & (ids_BS[:, 1:] == stream.bos))
    positions_BT = np.broadcast_to(np.arange(length), weights_BT.shape)
    segments_BT = None
    if apart:
        weights_BT = weights_BT & ~first_BS[:, 1:]
        segments_BT = np.where(inside_BS, document_BS - document_BS[:, :1] + 1, 0)[:, :-1].astype(np.int32)
        opening_BT = np.where(first_BS[:, :-1], positions_BT, 0)
        positions_BT = positions_BT - np.maximum.accumulate(opening_BT, axis=1)
    return Batch(
        tokens_BT=np.ascontiguousarray(ids_BS[:, :-1]),
        positions_BT=np.ascontiguousarray(positions_BT, np.int32),
        segments_BT=segments_BT,
        targets_BT=np.ascontiguousarray(ids_BS[:, 1:]),
        weights_BT=weights_BT.astype(np.float32),
    )


def held_out_batches(stream: TokenStream, length: int, rows: int, *, apart: bool, part: np.ndarray | None = None):
    """All windows in order, `rows` at a time; rows beyond the last window are padding. part: which rows of each batch
    are read; None: all."""
    total, part = count(stream, length), np.arange(rows) if part is None else part
    for first in range(0, total, rows):
        starts = (first + part) * length
        starts[first + part >= total] = stream.size
        yield read(stream, starts, length, apart=apart)
