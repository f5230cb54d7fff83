"""The batch of a step: a pure function of (experiment, step).

Rows of each source are shuffled anew in every pass by a seeded bijection, and passes follow one another without end; a
mixture takes rows of its parts by deterministic weights. Position i of the resulting endless list is row
i mod B of step i / B + 1, so any step is found in constant time, on any number of hosts, devices and threads.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import grain
import jax
import numpy as np

from lmjax.data.batch import Batch

READ_AHEAD = 4


@dataclass(frozen=True)
class Address:
    """Where a row comes from: the number of its source, and its place there: the token at which a window starts, or
    the number of a row of packed examples."""

    part: int
    start: int


class Rows(Protocol):
    """Rows of one length, by address: windows onto a text (data/windows.py), or packed examples (data/packing.py)."""

    length: int
    # UTF-8 bytes of all that is read, where it is one text
    text_bytes: int | None

    def obstacle(self) -> str | None:
        """Why there is nothing here to evaluate, or None."""

    def protocol(self) -> str:
        """How these rows are read, in words."""

    def endless(self, order_seed: int, shift_seed: int) -> grain.MapDataset:
        """The places of all rows, pass after pass, each in another order."""

    def read(self, starts_B: np.ndarray) -> Batch:
        """The rows at these places."""

    def in_order(self, rows: int, part: np.ndarray | None = None) -> Iterator[Batch]:
        """Every row once, so many at a time, the last batch filled up with padding. part: which rows of each batch are
        read; None: all."""


# changes a batch by the numbers of its rows in all that is ever read, such as by masking tokens
Change = Callable[[Batch, np.ndarray], Batch]


class Batches:
    """batches[step] for step = 1, 2, ...: `addresses(step)` says which rows, [] reads them, `part` some of them."""

    def __init__(self, parts: list[tuple[Rows, float]], *, rows: int, seed: int, change: Change | None = None):
        self.parts = [part for part, _ in parts]
        self.length, self.rows, self.change = self.parts[0].length, rows, change
        endless = [_addresses(number, part, seed) for number, part in enumerate(self.parts)]
        weights = [weight for _, weight in parts]
        self._list = endless[0] if len(parts) == 1 else grain.MapDataset.mix(endless, weights)

    def addresses(self, step: int) -> list[Address]:
        return self._addresses(step, np.arange(self.rows))

    def _addresses(self, step: int, rows: np.ndarray) -> list[Address]:
        return [self._list[(step - 1) * self.rows + int(row)] for row in rows]

    def __getitem__(self, step: int) -> Batch:
        return self.part(step, np.arange(self.rows))

    def part(self, step: int, rows: np.ndarray) -> Batch:
        """These rows of a step's batch; nothing else is read."""
        batch = self._read(self._addresses(step, rows))
        return batch if self.change is None else self.change(batch, (step - 1) * self.rows + rows)

    def _read(self, addresses: list[Address]) -> Batch:
        numbers = np.array([address.part for address in addresses])
        starts = np.array([address.start for address in addresses])
        if len(self.parts) == 1:
            return self.parts[0].read(starts)
        pieces = [self.parts[number].read(starts[numbers == number]) for number in np.unique(numbers)]
        # pieces are sorted by their source; this puts each row where it belongs
        where = np.argsort(np.argsort(numbers, kind="stable"), kind="stable")
        return jax.tree.map(lambda *fields: np.concatenate(fields)[where], *pieces)

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


def _addresses(number: int, part: Rows, seed: int):
    seeds = np.random.SeedSequence([seed, number]).generate_state(2)
    return part.endless(*map(int, seeds)).map(lambda start: Address(number, int(start)))
