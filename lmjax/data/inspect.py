"""What the model sees: windows as text, with the places where documents and predictions begin and end."""

from collections.abc import Iterator

import numpy as np

from lmjax.data.batches import Batches
from lmjax.tokenizers import Tokenizer


def report(batches: Batches, tokenizer: Tokenizer, texts: list[str], step: int, windows: int) -> Iterator[str]:
    """Lines: some windows of a step's batch, then whether the tokenizer gives back the texts that it read."""
    batch, addresses = batches[step], batches.addresses(step)
    documents = "keeps documents apart" if batches.apart else "runs across documents"
    yield f"step {step}: {batches.rows} windows of {batches.length} tokens; attention {documents}"
    for row in range(min(windows, batches.rows)):
        ids, weights = batch.tokens_BT[row], batch.weights_BT[row]
        where = addresses[row]
        counted = f"{int(weights.sum())} of {len(ids)} places predict"
        yield f"window {row}: source {where.part}, tokens {where.start} to {where.start + len(ids) - 1}; {counted}"
        starts = batches.streams[where.part].starts - where.start
        # np.unique: a document that begins before the window gives no boundary inside it
        inside = np.unique(starts[(starts > 0) & (starts < len(ids))])
        for piece, begin in zip(np.split(ids, inside), [0, *inside], strict=True):
            mark = "|" if begin or 0 in starts else "..."
            yield f"  {mark} {tokenizer.decode(piece)!r}"
        last = tokenizer.decode([int(batch.targets_BT[row, -1])])
        yield f"  last prediction: {last!r}"
    yield round_trip(tokenizer, texts)


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
