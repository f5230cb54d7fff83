"""How far a long evaluation is: a bar on a terminal, a line from time to time elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

LINE_SECONDS = 30


def followed(items: Iterable[T], total: int, size: Callable[[T], int]) -> Iterator[T]:
    """The items, each counted with its size towards the total when the next is asked for."""
    if sys.stdout.isatty():
        yield from _with_bar(items, total, size)
        return
    done, next_line = 0, time.monotonic() + LINE_SECONDS
    for item in items:
        yield item
        done += size(item)
        if time.monotonic() >= next_line:
            next_line = time.monotonic() + LINE_SECONDS
            print(f"{done:,} of {total:,}", flush=True)


def _with_bar(items: Iterable[T], total: int, size: Callable[[T], int]) -> Iterator[T]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True) as bar:
        task = bar.add_task("", total=total)
        for item in items:
            yield item
            bar.advance(task, size(item))
