"""What a model puts out for examples, packed in rows as in training and taken apart again."""

from collections.abc import Callable

import numpy as np

from lmjax.data.packing import Example, PackedRows
from lmjax.experiment import Experiment

# of a text that is told beside its prediction
CHARACTERS = 200


def unscored(ids: np.ndarray, types: np.ndarray | None) -> Example:
    """Of which nothing is predicted that could be right or wrong."""
    return Example(ids, np.zeros(len(ids), np.int32), np.zeros(len(ids), np.float32), types)


def of_examples(
    experiment: Experiment, run: Callable, params, examples: list[Example], length: int | None = None,
    source_length: int | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """(T, C) for each example. run: from (params, batch) to (B, T, C), compiled. length, source_length: of rows; None:
    the experiment's."""
    lengths = {"length": length or experiment.length, "source_length": source_length or experiment.source_length}
    rows = PackedRows(examples, **lengths)
    row_E, start_E = rows.places()
    found, size = [None] * len(examples), experiment.microbatch_size
    for index, batch in enumerate(rows.in_order(size)):
        out_BTC = np.asarray(run(params, batch))
        for e in np.flatnonzero(row_E // size == index):
            # a copy, so that the whole batch can go
            found[e] = out_BTC[row_E[e] % size, start_E[e] : start_E[e] + len(examples[e].tokens)].copy()
    return found
