"""Examples of a task in rows of one length, several in a row, each in a segment of its own: attention never mixes them.

Which examples share a row is decided once, by the seed; every pass has the rows in another order. So a row is found in
constant time, as a window onto a text is.
"""

import copy
import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import grain
import numpy as np

from lmjax.data.batch import Batch, SourceBatch

# rows that wait for an example that fits
OPEN = 64


class Example(NamedTuple):
    """What a record becomes, arrays (T,): tokens; what to predict at each place, and how much that counts; types, of a
    pair of texts. source: (S,), what an encoder reads. A task has types and sources in all of its examples or in
    none."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    types: np.ndarray | None = None
    source: np.ndarray | None = None


def next_tokens(ids: np.ndarray, counted: np.ndarray, source: np.ndarray | None = None) -> Example:
    """Each token from those before it; what counts is to predict those that are counted, a boolean for each of ids."""
    return Example(ids[:-1], ids[1:], counted[1:].astype(np.float32), None, source)


class Ragged:
    """Arrays of different lengths, one after another in one."""

    def __init__(self, pieces: list[np.ndarray], dtype):
        self.values = np.concatenate([*pieces, np.zeros(0, dtype)]).astype(dtype)
        self.ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        self.lengths = np.diff(self.ends, prepend=0)

    def __len__(self) -> int:
        return len(self.ends)


class PackedRows:
    """`batches.Rows` of examples: row r holds the examples rows[r]. source_length: of the encoder's rows, where the
    examples have sources. seed: None leaves the examples in their order as far as rows have room. No example may be
    longer than a row."""

    def __init__(self, examples: Iterable[Example], *, length: int, source_length: int, seed: int | None = None):
        fields = list(zip(*examples, strict=True))
        self.length, self.source_length = length, source_length
        kinds = (np.int32, np.int32, np.float32, np.int32, np.int32)
        self.tokens, self.targets, self.weights, self.types, self.sources = (
            Ragged(list(pieces), kind) if pieces[0] is not None else None
            for pieces, kind in zip(fields, kinds, strict=True)
        )
        sides = [(self.tokens, length)] + ([(self.sources, source_length)] if self.sources is not None else [])
        sizes = np.stack([side.lengths for side, _ in sides], axis=1)
        order = np.arange(len(sizes)) if seed is None else np.random.default_rng(seed).permutation(len(sizes))
        self.rows = packed(sizes, np.array([room for _, room in sides]), order)

    # a number for each token of the examples: `Batch.reference_BT`
    reference: Ragged | None = None
    # there is no text of which bits per byte could be told
    text_bytes = None

    def obstacle(self) -> None:
        """There is always an example."""

    def protocol(self) -> str:
        return f"{len(self.tokens):,} examples, each seen alone"

    @property
    def size(self) -> int:
        """Tokens of all examples, sources not counted."""
        return len(self.tokens.values)

    @property
    def density(self) -> float:
        """The share of the rows' places that are tokens."""
        return self.size / (len(self.rows) * self.length)

    def fingerprint(self) -> str:
        """Of the examples and their order; which of them share a row follows from these, the lengths and the seed."""
        digest = hashlib.sha256(f"lmjax examples {self.length} {self.source_length}".encode())
        for part in (self.tokens, self.targets, self.weights, self.types, self.sources):
            if part is not None:
                digest.update(part.values.tobytes() + part.ends.tobytes())
        return digest.hexdigest()[:32]

    def with_reference(self, values: np.ndarray) -> "PackedRows":
        """The same rows; values: for the tokens of all examples, one after another."""
        rows = copy.copy(self)
        rows.reference = Ragged(np.split(values, self.tokens.ends[:-1]), np.float32)
        return rows

    def endless(self, order_seed: int, shift_seed: int) -> grain.MapDataset:
        """Every row once a pass, in another order each time."""
        return grain.MapDataset.range(len(self.rows)).seed(order_seed).shuffle().repeat()

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """(the row of each example, the place in it where the example begins)."""
        row_E, start_E = np.zeros((2, len(self.tokens)), np.int64)
        for row, examples in enumerate(self.rows):
            row_E[examples], start_E[examples] = row, self.starts(row)
        return row_E, start_E

    def starts(self, row: int) -> np.ndarray:
        """Where in its row each example begins."""
        lengths = self.tokens.lengths[self.rows[row]]
        return np.cumsum(lengths) - lengths

    def read(self, starts_B: np.ndarray) -> Batch:
        """The rows of these numbers; a number beyond the last one gives padding."""
        rows = [self.rows[start] if start < len(self.rows) else () for start in starts_B]
        index, segments, positions = _places(rows, self.tokens, self.length)
        tokens, targets, weights, types, reference = (
            None if pieces is None else _taken(pieces, index, segments)
            for pieces in (self.tokens, self.targets, self.weights, self.types, self.reference)
        )
        return Batch(tokens, positions, segments, targets, weights, types, self._source(rows), reference)

    def _source(self, rows: list) -> SourceBatch | None:
        if self.sources is None:
            return None
        index, segments, positions = _places(rows, self.sources, self.source_length)
        return SourceBatch(_taken(self.sources, index, segments), positions, segments)

    def in_order(self, rows: int, part: np.ndarray | None = None):
        """All rows in their order; the last batch is filled up with padding."""
        part = np.arange(rows) if part is None else part
        for first in range(0, len(self.rows), rows):
            yield self.read(first + part)


def packed(sizes_ED: np.ndarray, room_D: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
    """The examples of each row: in the given order each goes into the first of the open rows that has room on every
    side, and the row that waited longest is closed where none has."""
    left_OD, open_rows, closed = np.zeros((0, len(room_D)), np.int64), [], []
    for example in order:
        size_D = sizes_ED[example]
        fits = np.flatnonzero((left_OD >= size_D).all(axis=1))
        if len(fits):
            left_OD[fits[0]] -= size_D
            open_rows[fits[0]].append(example)
            continue
        if len(open_rows) == OPEN:
            closed.append(open_rows.pop(0))
            left_OD = left_OD[1:]
        open_rows.append([example])
        left_OD = np.concatenate([left_OD, [room_D - size_D]])
    return [np.array(row) for row in closed + open_rows]


def _places(rows: list, pieces: Ragged, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(index into the values, segments, positions), each (B, length), of the pieces of each row one after another; all
    are 0 where nothing is."""
    index, segments, positions = np.zeros((3, len(rows), length), np.int64)
    for row, examples in enumerate(rows):
        lengths = pieces.lengths[list(examples)]
        stops, total = np.cumsum(lengths), lengths.sum()
        place = np.arange(total) - np.repeat(stops - lengths, lengths)
        positions[row, :total] = place
        segments[row, :total] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        index[row, :total] = np.repeat(pieces.ends[list(examples)] - lengths, lengths) + place
    return index, segments.astype(np.int32), positions.astype(np.int32)


def _taken(pieces: Ragged, index: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """The values at these places, 0 where no segment is."""
    values = np.zeros(index.shape, pieces.values.dtype)
    values[segments > 0] = pieces.values[index[segments > 0]]
    return values
