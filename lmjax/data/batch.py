"""What one step eats."""

from dataclasses import dataclass

import jax
import numpy as np

Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SourceBatch:
    """What an encoder reads: rows beside those of a Batch. A target token of segment i sees the source of segment i;
    0 is padding."""

    tokens_BS: Array
    positions_BS: Array
    segments_BS: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Rows of one length.

    targets_BT: what to predict at each place: a token, or the number of a label. weights_BT: how much each
    prediction counts, 0 for padding and across documents. segments_BT: which document of the row a token belongs to, 0
    for padding; None where attention runs across documents. types_BT: the first or the second text of a pair (BERT's
    token types); source: what an encoder reads; reference_BT: adds up over a segment to log p of what counts there
    under a model that is not trained; None where a task has none.
    """

    tokens_BT: Array
    positions_BT: Array
    segments_BT: Array | None
    targets_BT: Array
    weights_BT: Array
    types_BT: Array | None = None
    source: SourceBatch | None = None
    reference_BT: Array | None = None
