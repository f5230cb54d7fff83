"""Run in each of two processes: which rows of a batch this one reads and places, and what all of them hold, as JSON."""

import json
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from lmjax.data.batches import Batches
from lmjax.data.store import TokenStream
from lmjax.data.windows import Windows
from lmjax.sharding import Mesh, build_mesh, local_rows, place_batch

LENGTH, ROWS = 16, 8


class Watched(TokenStream):
    """A stream that remembers how many tokens were read from it."""

    def gather(self, indices):
        object.__setattr__(self, "read", getattr(self, "read", 0) + indices.size)
        return super().gather(indices)


def main(coordinator: str, process: str, mesh: str):
    jax.distributed.initialize(coordinator, 2, int(process))
    stream = Watched((np.arange(4000, dtype=np.uint16),), np.array([0]), 4000, None)
    batches = Batches([(Windows(stream, LENGTH, apart=False), 1.0)], rows=ROWS, seed=1)
    mesh = build_mesh(Mesh(**json.loads(mesh)))
    rows = local_rows(mesh, ROWS)
    batch = batches.part(3, rows)
    read = stream.read
    placed = place_batch(batch, mesh, ROWS)
    whole = batches[3]
    for a, b in zip(jax.tree.leaves(placed), jax.tree.leaves(whole), strict=True):
        assert np.array_equal(multihost_utils.process_allgather(a, tiled=True), b)
    print("RESULT", json.dumps({"rows": rows.tolist(), "read": read}), flush=True)


main(*sys.argv[1:])
