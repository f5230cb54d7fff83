"""What the model sees: windows as text, with the places where documents and predictions begin and end."""

from collections.abc import Iterator

import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.batches import Batches
from lmjax.data.windows import Windows
from lmjax.tokenizers import Tokenizer


def report(batches: Batches, tokenizer: Tokenizer, texts: list[str], step: int, windows: int) -> Iterator[str]:
    """Lines: some rows of a step's batch, then whether the tokenizer gives back the texts that it read."""
    batch, addresses = batches[step], batches.addresses(step)
    apart = "runs across documents" if batch.segments_BT is None else "keeps documents apart"
    yield f"step {step}: {batches.rows} windows of {batches.length} tokens; attention {apart}"
    for row in range(min(windows, batches.rows)):
        where, part = addresses[row], batches.parts[addresses[row].part]
        counted = f"{int((batch.weights_BT[row] > 0).sum())} of {batches.length} places predict"
        if isinstance(part, Windows):
            last = where.start + part.length - 1
            yield f"window {row}: source {where.part}, tokens {where.start} to {last}; {counted}"
            yield from _window(batch, row, part.stream.starts - where.start, tokenizer)
        else:
            yield f"row {row}: source {where.part}, row {where.start}; {counted}"
            yield from _examples(batch, row, tokenizer)
    yield round_trip(tokenizer, texts)


def _window(batch: Batch, row: int, starts: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    """starts: of all documents, counted from the window's first token."""
    ids = batch.tokens_BT[row]
    # np.unique: a document that begins before the window gives no boundary inside it
    inside = np.unique(starts[(starts > 0) & (starts < len(ids))])
    for piece, begin in zip(np.split(ids, inside), [0, *inside], strict=True):
        mark = "|" if begin or 0 in starts else "..."
        yield f"  {mark} {tokenizer.decode(piece)!r}"
    last = tokenizer.decode([int(batch.targets_BT[row, -1])])
    yield f"  last prediction: {last!r}"


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
