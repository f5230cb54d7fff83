"""Training speed beside a peer, in one run on this machine.

    python -m pip install torch==2.13.0 transformers && python benchmarks/train_step.py

Ours is the step that `run.py` trains with; the peer is transformers' GPT-2 with PyTorch's AdamW and gradient clipping,
on the same shape and the same random tokens, eager and through torch.compile, on a GPU where JAX finds one, else on
all of this machine's cores. They take turns, each in a process of its own, so that a noisy machine
is noisy for all; medians are printed, and ratios of medians. Only steps are timed: compiling is over by then.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version

import jax
import numpy as np

from lmjax import experiment as experiments
from lmjax.data.batch import Batch
from lmjax.sharding import Mesh, build_mesh, place_batch
from lmjax.train import state as train_state
from lmjax.train.step import compile_step


def ours(experiment, tokens_BS):
    """A function that makes one step and waits for it."""
    mesh = build_mesh(Mesh(), jax.devices()[:1])
    optimizer = train_state.transform(experiment)
    B, T = tokens_BS.shape[0], tokens_BS.shape[1] - 1
    positions_BT = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    batch = Batch(tokens_BS[:, :-1], positions_BT, None, tokens_BS[:, 1:], np.ones((B, T), np.float32))
    with jax.set_mesh(mesh):
        where = train_state.shardings(experiment, optimizer, mesh)
        state, frozen = jax.jit(lambda: train_state.fresh(experiment, optimizer), out_shardings=where)()
        step, carry, placed = compile_step(experiment, optimizer, mesh), [state], place_batch(batch, mesh)

    def run():
        with jax.set_mesh(mesh):
            carry[0], metrics = step(carry[0], frozen, placed)
            return float(metrics.loss)

    return run


def peer(experiment, tokens_BS, autocast: bool, compiled: bool):
    """The same with transformers and PyTorch. autocast: in bfloat16 where PyTorch thinks it safe."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count())
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    cfg = experiment.model
    activation = {"gelu": "gelu", "gelu_tanh": "gelu_new"}[cfg.feedforward.activation]
    config = transformers.GPT2Config(
        n_layer=cfg.layers, n_head=cfg.heads, n_embd=cfg.width, n_positions=cfg.context, vocab_size=cfg.vocab,
        resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0, activation_function=activation, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    inputs, targets = (torch.tensor(x.astype(np.int64)).to(device) for x in (tokens_BS[:, :-1], tokens_BS[:, 1:]))

    def mean_loss():
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            logits = model(inputs, use_cache=False).logits
            return torch.nn.functional.cross_entropy(logits.float().view(-1, cfg.vocab), targets.reshape(-1))

    forward = torch.compile(mean_loss) if compiled else mean_loss

    def run():
        loss = forward()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return run


WORKS = {
    "0.8M, batch 12 x 64": ("experiments/shakespeare_char_cpu.py", [], 64, 100),
    # the peer recomputes nothing and holds all logits; so do we
    "GPT-2 124M, batch 2 x 512": (
        "experiments/gpt2_124m.py",
        [
            "batch_size=2",
            "microbatches=1",
            "model.unroll=12",
            "model.remat=nothing",
            "task.loss_chunk=none",
        ],
        512,
        4,
    ),
}
# who: (ours, in bfloat16, compiled by torch.compile)
WHO = {
    "lmjax float32": (True, False, False),
    "lmjax bfloat16": (True, True, False),
    "PyTorch float32": (False, False, False),
    "PyTorch bfloat16 autocast": (False, True, False),
    "PyTorch float32 compiled": (False, False, True),
    "PyTorch bfloat16 autocast compiled": (False, True, True),
}
BASE = "PyTorch float32"


def contestant(work: str, who: str) -> None:
    """Print the seconds of each step, after two to warm up."""
    path, overrides, length, steps = WORKS[work]
    is_ours, bfloat16, compiled = WHO[who]
    overrides = [*overrides, f"model.dtype={'bfloat16' if bfloat16 else 'float32'}"]
    experiment = experiments.load(path, overrides).with_vocab(65)
    shape = (experiment.batch_size, length + 1)
    tokens_BS = np.random.default_rng(0).integers(0, experiment.model.vocab, shape, np.int32)
    run = ours(experiment, tokens_BS) if is_ours else peer(experiment, tokens_BS, bfloat16, compiled)
    run(), run()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "tokens": experiment.batch_size * length}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS), metavar="WORK")
    parser.add_argument("--who", nargs="+", choices=WHO, default=list(WHO), metavar="WHO")
    parser.add_argument("--contestant", nargs=2, metavar=("WORK", "WHO"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        return contestant(*options.contestant)
    packages = ", ".join(f"{p} {version(p)}" for p in ("jax", "torch", "transformers"))
    print(f"{jax.devices()[0].device_kind}, {platform.machine()}, {os.cpu_count()} cores, {packages}")
    print(f"| work | who | ms a step | tokens/s | times {BASE} |\n|---|---|---|---|---|", flush=True)
    for work in options.works:
        seconds = {who: [] for who in options.who}
        for _ in range(options.rounds):
            # a process each: the threads that one library keeps spinning would slow the other
            for who in options.who:
                command = [sys.executable, __file__, "--contestant", work, who]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                result = json.loads(done.stdout.splitlines()[-1])
                seconds[who] += result["seconds"]
        medians = {who: statistics.median(times) for who, times in seconds.items()}
        for who, median in medians.items():
            speed, ratio = result["tokens"] / median, medians.get(BASE, float("nan")) / median
            print(f"| {work} | {who} | {1000 * median:,.0f} | {speed:,.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
