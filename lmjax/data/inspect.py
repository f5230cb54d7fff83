"""What the model sees: windows as text, with the places where documents and predictions begin and end."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.batches import Batches
from lmjax.data.windows import Windows
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.pieces import filled


def report(batches: Batches, tokenizer: Tokenizer, texts: list[str], step: int, windows: int) -> Iterator[str]:
    """Lines: some rows of a step's batch, then whether the tokenizer gives back the texts that it read."""
    batch, addresses = batches[step], batches.addresses(step)
    joined = isinstance(batches.parts[0], Windows) and not batches.parts[0].apart
    apart = "runs across documents" if joined else "keeps documents apart"
    yield f"step {step}: {batches.rows} windows of {batches.length} tokens; attention {apart}"
    for row in range(min(windows, batches.rows)):
        where, part = addresses[row], batches.parts[addresses[row].part]
        counted = f"{int((batch.weights_BT[row] > 0).sum())} of {batches.length} places predict"
        if isinstance(part, Windows):
            last = where.start + part.length - 1
            yield f"window {row}: source {where.part}, tokens {where.start} to {last}; {counted}"
            if part.ahead:
                yield from _window(batch, row, part.stream.starts - where.start, tokenizer)
            else:
                yield from _hidden(batch, row, part.stream.starts - where.start, tokenizer)
        else:
            yield f"row {row}: source {where.part}, row {where.start}; {counted}"
            yield from _examples(batch, row, tokenizer)
    yield round_trip(tokenizer, texts)


def _window(batch: Batch, row: int, starts: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    """starts: of all documents, counted from the window's first token."""
    ids = batch.tokens_BT[row]
    for mark, part in _documents(starts, len(ids)):
        yield f"  {mark} {tokenizer.decode(ids[part])!r}"
    last = tokenizer.decode([int(batch.targets_BT[row, -1])])
    yield f"  last prediction: {last!r}"


def _hidden(batch: Batch, row: int, starts: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    """What is predicted in brackets, and before it what the model reads in its place, <N> for the mask."""
    for mark, part in _documents(starts, batch.tokens_BT.shape[1]):
        places = np.flatnonzero(batch.weights_BT[row, part])
        read, own = batch.tokens_BT[row, part], batch.targets_BT[row, part]
        yield f"  {mark} {filled(tokenizer, own, places, read[places], ' for ')!r}"


def _documents(starts: np.ndarray, length: int) -> Iterator[tuple[str, slice]]:
    """(a mark: whether it begins in the window, its places) of the documents in a window."""
    # np.unique: a document that begins before the window gives no boundary inside it
    inside = np.unique(starts[(starts > 0) & (starts < length)])
    for begin, end in pairwise([0, *inside, length]):
        yield "|" if begin or 0 in starts else "...", slice(begin, end)


def _examples(batch: Batch, row: int, tokenizer: Tokenizer) -> Iterator[str]:
    for segment in range(1, batch.segments_BT[row].max() + 1):
        here = batch.segments_BT[row] == segment
        source = ""
        if batch.source is not None:
            ids = batch.source.tokens_BS[row][batch.source.segments_BS[row] == segment]
            source = f"{tokenizer.decode(ids)!r} => "
        counts = batch.weights_BT[row][here] > 0
        targets = batch.targets_BT[row][here][counts].tolist()
        yield f"  | {source}{tokenizer.decode(batch.tokens_BT[row][here])!r}; targets {str(targets)[:60]}"


def round_trip(tokenizer: Tokenizer, texts: list[str]) -> str:
    """Whether decode(encode(text)) is the text, for every text; if not, where the first one parts."""
    for number, text in enumerate(texts):
        back = tokenizer.decode(tokenizer.encode(text))
        if back != text:
            at = next(
                (i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back))
            )
            return (
                f"round trip: NOT exact: held-out document {number} parts at character {at}: "
                f"{text[at : at + 20]!r} became {back[at : at + 20]!r}"
            )
    return f"round trip: exact for {len(texts)} held-out documents, {sum(map(len, texts)):,} characters"
