"""The batch of a step: a pure function of (experiment, step).

Each source is shuffled anew in every pass by a seeded bijection, and passes follow one another without end; a
mixture takes windows of its parts by deterministic weights. Position i of the resulting endless list is row
i mod B of step i / B + 1, so any step is found in constant time, on any number of hosts, devices and threads.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grain
import numpy as np

from lmjax.data import windows
from lmjax.data.batch import Batch
from lmjax.data.store import TokenStream

READ_AHEAD = 4


@dataclass(frozen=True)
class Address:
    """Where a row comes from: the number of its source, and the token at which its window starts."""

    part: int
    start: int


class Batches:
    """batches[step] for step = 1, 2, ...: `addresses(step)` says which windows, [] reads them, `part` some of them."""

    def __init__(self, streams: list[tuple[TokenStream, float]], *, length: int, rows: int, seed: int, apart: bool):
        self.streams = [stream for stream, _ in streams]
        self.length, self.rows, self.apart = length, rows, apart
        weights = [weight for _, weight in streams]
        parts = [
            _endless_windows(number, stream, length, np.random.SeedSequence([seed, number]))
            for number, stream in enumerate(self.streams)
        ]
        self._list = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)

    def addresses(self, step: int) -> list[Address]:
        return self._addresses(step, np.arange(self.rows))

    def _addresses(self, step: int, rows: np.ndarray) -> list[Address]:
        return [self._list[(step - 1) * self.rows + int(row)] for row in rows]

    def __getitem__(self, step: int) -> Batch:
        return self.part(step, np.arange(self.rows))

    def part(self, step: int, rows: np.ndarray) -> Batch:
        """These rows of a step's batch; nothing else is read."""
        addresses = self._addresses(step, rows)
        if len(self.streams) == 1:
            return self._read(0, addresses)
        numbers = np.array([address.part for address in addresses])
        pieces = {part: self._read(part, [a for a in addresses if a.part == part]) for part in np.unique(numbers)}
        rows_of = {part: iter(range(len(rows))) for part in pieces}
        order = [(part, next(rows_of[part])) for part in numbers]

        def interleave(name):
            fields = {part: getattr(piece, name) for part, piece in pieces.items()}
            return None if fields[numbers[0]] is None else np.stack([fields[part][row] for part, row in order])

        return Batch(**{name: interleave(name) for name in Batch.__dataclass_fields__})

    def _read(self, part: int, addresses: list[Address]) -> Batch:
        starts = np.array([address.start for address in addresses])
        return windows.read(self.streams[part], starts, self.length, apart=self.apart)

    def ahead(self, first: int, last: int, prepare=lambda batch: batch, rows: np.ndarray | None = None):
        """(step, prepare(batch)) for these steps, made by a thread a few steps ahead: the device never waits. rows:
        which are read; None: all."""
        rows = np.arange(self.rows) if rows is None else rows
        with ThreadPoolExecutor(1) as pool:
            waiting = deque()
            for step in range(first, last + 1):
                waiting.append((step, pool.submit(lambda step: prepare(self.part(step, rows)), step)))
                if len(waiting) > READ_AHEAD:
                    step, batch = waiting.popleft()
                    yield step, batch.result()
            while waiting:
                step, batch = waiting.popleft()
                yield step, batch.result()


def _endless_windows(part: int, stream: TokenStream, length: int, seed: np.random.SeedSequence):
    """Addresses of the full windows of a stream: each once a pass, every pass in another order and moved by
    another shift, so that a token is not always at the same place of its window."""
    full = (stream.size - 1) // length
    # one window fewer leaves room to shift; a short text cannot spare it
    full -= full >= 16
    room = stream.size - 1 - full * length
    order_seed, shift_seed = (int(word) for word in seed.generate_state(2))

    def address(index: int, window: int) -> Address:
        shift = np.random.default_rng([shift_seed, index // full]).integers(room + 1) if room else 0
        return Address(part, int(shift) + window * length)

    return grain.MapDataset.range(full).seed(order_seed).shuffle().repeat().map_with_index(address)
