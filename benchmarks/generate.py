"""Generation and loading beside a peer, in one run on this machine.

    python -m pip install -e '.[parity]' && python benchmarks/generate.py

GPT-2 124M with random weights, written once as a Hugging Face directory that both sides load: 32 tokens in, 64 out, the
most probable each time. The peer is transformers' `generate` in PyTorch. They take turns, each in a process of its own,
all of this machine's cores for each; medians are printed. Then: how long loading takes beside a plain read of the file,
for GPT-2 and for Llama's shapes. --quality MODEL --text FILE: what fewer bytes cost, as loss on a text; random weights
have no quality to lose.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

READ, WRITTEN, TIMES = 32, 64, 5
WEIGHTS = ("float32", "bfloat16", "int8")
OURS = [f"lmjax {weights}" for weights in WEIGHTS]
PEERS = ["PyTorch float32", "PyTorch bfloat16"]


def make(directory: Path, shape: str) -> None:
    """Random weights of GPT-2 124M, or of a Llama of 122M."""
    import jax

    from lmjax.interop.write import export
    from lmjax.models import transformer, zoo
    from lmjax.models.feedforward import Gated

    small = {"layers": 4, "width": 1024, "heads": 16, "kv_heads": 8, "vocab": 32_000, "context": 2048}
    cfg = zoo.gpt2("small") if shape == "gpt2" else zoo.llama("3-8b", **small, feedforward=Gated(width=4096))
    export(cfg, transformer.init_params(cfg, jax.random.key(0)), None, directory)


def ours(directory: Path, weights: str):
    """A function that writes on from ids (B, T)."""
    import lmjax

    model = lmjax.load(directory, weights=weights)
    return lambda ids_BT: model.generate(ids_BT, max_new_tokens=WRITTEN)


def peer(directory: Path, dtype: str):
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count())
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).train(False)
    fixed = {"min_new_tokens": WRITTEN, "max_new_tokens": WRITTEN, "do_sample": False, "pad_token_id": 0}

    def run(ids_BT):
        ids = torch.tensor(ids_BT)
        with torch.no_grad():
            return model.generate(ids, attention_mask=torch.ones_like(ids), **fixed)

    return run


def contestant(directory: str, who: str) -> None:
    """Print the seconds of each generation for batches of 1 and 8, after one to warm up."""
    library, precision = who.split()
    run = (ours if library == "lmjax" else peer)(Path(directory), precision)
    seconds = {}
    for batch in (1, 8):
        ids_BT = np.random.default_rng(0).integers(0, 50_257, (batch, READ))
        run(ids_BT)
        seconds[batch] = []
        for _ in range(TIMES):
            start = time.perf_counter()
            run(ids_BT)
            seconds[batch].append(time.perf_counter() - start)
    print(json.dumps(seconds))


def loading(directory: str) -> None:
    """Print [seconds of a plain read, of loading] pairs; the first load compiles."""
    import jax

    from lmjax.interop.read import load_params, open_checkpoint

    file, pairs = Path(directory) / "model.safetensors", []
    jax.numpy.zeros(3).block_until_ready()
    for _ in range(TIMES):
        start = time.perf_counter()
        file.read_bytes()
        middle = time.perf_counter()
        jax.block_until_ready(load_params(open_checkpoint(Path(directory)), stacked=False))
        pairs.append((middle - start, time.perf_counter() - middle))
    print(json.dumps(pairs))


def in_a_process(*words: str):
    """What the last line says of this file, run with these words."""
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def quality(model: str, text: str) -> None:
    """Print the loss of a text with weights of each precision, by the verb evaluate."""
    print("\n| weights | loss, nats a token | bits per byte |\n|---|---|---|")
    root = Path(__file__).parents[1]
    for weights in WEIGHTS:
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            words = ["evaluate", "--model", model, "--text", text, "--weights", weights, "--json", file.name]
            subprocess.run([sys.executable, str(root / "run.py"), *words], check=True, stdout=subprocess.DEVNULL)
            result = json.loads(Path(file.name).read_text())
        print(f"| {weights} | {result['eval_loss']:.5f} | {result['bits_per_byte']:.5f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quality", metavar="MODEL", help="a run or a Hugging Face directory")
    parser.add_argument("--text", metavar="FILE")
    parser.add_argument("--contestant", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--loading", help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        return contestant(*options.contestant)
    if options.loading:
        return loading(options.loading)
    if options.make:
        make(Path(options.make[0]), options.make[1])
        return print("{}")
    packages = ", ".join(f"{p} {version(p)}" for p in ("jax", "torch", "transformers"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {packages}; {READ} tokens in, {WRITTEN} out")
    with tempfile.TemporaryDirectory() as folder:
        for shape in ("gpt2", "llama"):
            in_a_process("--make", f"{folder}/{shape}", shape)
        speeds(f"{folder}/gpt2", options.rounds)
        print("\n| loading, layers apart | file | plain read | loading | times | first |\n|---|---|---|---|---|---|")
        for shape in ("gpt2", "llama"):
            pairs = in_a_process("--loading", f"{folder}/{shape}")
            size = Path(f"{folder}/{shape}/model.safetensors").stat().st_size
            read, load = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(
                f"| {shape} | {size >> 20} MB | {read:.2f} s | {load:.2f} s | {load / read:.2f} | {pairs[0][1]:.2f} s |"
            )
    if options.quality:
        quality(options.quality, options.text)


def speeds(directory: str, rounds: int) -> None:
    """Print tokens a second of everybody, and times the best of the peers."""
    seconds = {who: {"1": [], "8": []} for who in [*PEERS, *OURS]}
    for _ in range(rounds):
        # a process each: the threads that one library keeps spinning would slow the other
        for who in seconds:
            for batch, times in in_a_process("--contestant", directory, who).items():
                seconds[who][batch] += times
    print("| who | batch | tokens/s | times the best of PyTorch |\n|---|---|---|---|")
    for batch in ("1", "8"):
        speed = {who: int(batch) * WRITTEN / statistics.median(times[batch]) for who, times in seconds.items()}
        best = max(speed[who] for who in PEERS)
        for who, tokens in speed.items():
            print(f"| {who} | {batch} | {tokens:.1f} | {tokens / best:.2f} |", flush=True)


if __name__ == "__main__":
    main()
