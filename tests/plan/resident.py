"""Run in a process of its own: the rise of resident memory over a training step beside what the plan says, as JSON."""

import json
import threading
import time
from pathlib import Path

import jax
import numpy as np

from lmjax.plan.compiled import abstract_batch, compile_train_step
from lmjax.sharding import Mesh, build_mesh, place_batch
from lmjax.train import state as train_state
from tests import tiny


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def main():
    cfg = tiny.gpt2(layers=2, width=512, heads=8, context=256, vocab=16_384)
    experiment = tiny.experiment("unused", model=cfg, batch_size=8, microbatches=1)
    mesh = build_mesh(Mesh(), jax.devices()[:1])
    program, figures = compile_train_step(experiment, mesh)
    optimizer = train_state.transform(experiment)
    batch = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), abstract_batch(experiment, mesh))
    make = jax.jit(
        lambda: train_state.fresh(experiment, optimizer),
        out_shardings=train_state.shardings(experiment, optimizer, mesh),
    )
    make = make.lower().compile()
    before, highest, stop = resident(), [0], threading.Event()

    def watch():
        while not stop.is_set():
            highest[0] = max(highest[0], resident())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    state, frozen = make()
    state, _ = program(state, frozen, place_batch(batch, mesh))
    jax.block_until_ready(state)
    stop.set()
    watcher.join()
    print(json.dumps({"rise": highest[0] - before, "planned": figures.peak}))


main()
