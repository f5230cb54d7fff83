"""What one step eats."""

from dataclasses import dataclass

import jax
import numpy as np

Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Rows of one length.

    targets_BT: the token to predict at each place. weights_BT: how much each prediction counts, 0 for
    padding and across documents. segments_BT: which document of the row a token belongs to, 0 for
    padding; None where attention runs across documents.
    """

    tokens_BT: Array
    positions_BT: Array
    segments_BT: Array | None
    targets_BT: Array
    weights_BT: Array
