"""Training speed beside a peer, in one run on this machine.

    python -m pip install torch==2.13.0 transformers && python benchmarks/train_step.py

Ours is the step that `run.py` trains with; the peer is transformers' GPT-2 with PyTorch's AdamW and gradient clipping,
on the same shape and the same random tokens, all of this machine's cores for both. The two take turns, so that a
noisy machine is noisy for both; medians are printed, and ratios of medians.
"""

import argparse
import os
import platform
import statistics
import time
from importlib.metadata import version

import jax
import numpy as np

from lmjax import experiment as experiments
from lmjax import optim
from lmjax.data.batch import Batch
from lmjax.sharding import Mesh, build_mesh, place_batch
from lmjax.train import state as train_state
from lmjax.train.loop import compile_step


def ours(experiment, tokens_BS):
    """A function that makes one step and waits for it."""
    mesh = build_mesh(Mesh(), jax.devices()[:1])
    optimizer = optim.transform(experiment.optimizer, experiment.schedule, experiment.steps)
    B, T = tokens_BS.shape[0], tokens_BS.shape[1] - 1
    positions_BT = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    batch = Batch(tokens_BS[:, :-1], positions_BT, None, tokens_BS[:, 1:], np.ones((B, T), np.float32))
    with jax.set_mesh(mesh):
        where = train_state.shardings(experiment.model, optimizer, mesh)
        make = jax.jit(lambda: train_state.fresh(experiment.model, optimizer, 0), out_shardings=where)
        step, carry, placed = compile_step(experiment, optimizer, mesh), [make()], place_batch(batch, mesh)

    def run():
        with jax.set_mesh(mesh):
            carry[0], metrics = step(carry[0], placed)
            return float(metrics.loss)

    return run


def peer(experiment, tokens_BS, autocast: bool):
    """The same with transformers and PyTorch, eager; autocast: in bfloat16 where PyTorch thinks it safe."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count())
    cfg = experiment.model
    activation = {"gelu": "gelu", "gelu_tanh": "gelu_new"}[cfg.feedforward.activation]
    config = transformers.GPT2Config(
        n_layer=cfg.layers, n_head=cfg.heads, n_embd=cfg.width, n_positions=cfg.context, vocab_size=cfg.vocab,
        resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0, activation_function=activation, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    inputs, targets = (torch.tensor(x.astype(np.int64)) for x in (tokens_BS[:, :-1], tokens_BS[:, 1:]))

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(inputs).logits
            loss = torch.nn.functional.cross_entropy(logits.float().view(-1, cfg.vocab), targets.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss)

    return run


def compare(name: str, path: str, overrides: list[str], length: int, rounds: int, steps: int) -> list[str]:
    """Rows of the table for one experiment; each round runs `steps` steps of each contestant."""
    experiment = experiments.load(path, overrides)
    experiment = experiment.with_vocab(65)
    tokens_BS = np.random.default_rng(0).integers(
        0, experiment.model.vocab, (experiment.batch_size, length + 1), np.int32
    )
    contestants = {
        "lmjax float32": ours(experiment, tokens_BS),
        "PyTorch float32": peer(experiment, tokens_BS, False),
        "PyTorch bfloat16 autocast": peer(experiment, tokens_BS, True),
    }
    seconds = {who: [] for who in contestants}
    for who, run in contestants.items():
        print(f"{name}: {who} warms up, loss {run():.3f}", flush=True)
        run()
    for _ in range(rounds):
        for who, run in contestants.items():
            for _ in range(steps):
                start = time.perf_counter()
                run()
                seconds[who].append(time.perf_counter() - start)
    rows, base = [], statistics.median(seconds["PyTorch float32"])
    for who, times in seconds.items():
        median = statistics.median(times)
        speed = experiment.batch_size * length / median
        rows.append(f"| {name} | {who} | {1000 * median:,.0f} | {speed:,.0f} | {base / median:.2f} |")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=["char", "gpt2"])
    options = parser.parse_args()
    rows = []
    if options.only != "gpt2":
        rows += compare("0.8M, batch 12 x 64", "experiments/shakespeare_char_cpu.py", [], 64, rounds=10, steps=20)
    if options.only != "char":
        # the peer recomputes nothing and holds all logits; so do we
        changes = ["batch_size=2", "microbatches=1", "model.dtype=float32", "model.unroll=12"]
        changes += ["model.remat=nothing", "task.loss_chunk=none"]
        rows += compare("GPT-2 124M, batch 2 x 512", "experiments/gpt2_124m.py", changes, 512, rounds=4, steps=1)
    print(
        f"\n{platform.machine()}, {os.cpu_count()} cores, "
        + ", ".join(f"{p} {version(p)}" for p in ("jax", "torch", "transformers"))
    )
    print("| work | who | ms a step | tokens/s | times PyTorch float32 |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
