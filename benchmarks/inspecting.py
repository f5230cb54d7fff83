"""Seconds from start to page: `run.py inspect` of a model of GPT-2 124M's shape with random weights, on 256 tokens.

    python benchmarks/inspecting.py --tokenizer path/to/gpt2 [--rounds 3]

`--tokenizer` is a directory with tokenizer.json, or vocab.json and merges.txt. Each round is a process of its own; the
first one finds no compiled program, the others those of the rounds before.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

from lmjax.interop.write import export
from lmjax.models import transformer, zoo
from lmjax.tokenizers import HuggingFace

ROOT = Path(__file__).parents[1]
TOKENS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="a directory")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    tokenizer = HuggingFace(path=options.tokenizer).build(lambda: [])
    prompt = tokenizer.decode(tokenizer.encode((ROOT / "README.md").read_text(encoding="utf-8"))[:TOKENS])
    with tempfile.TemporaryDirectory() as folder:
        model, page = Path(folder) / "model", Path(folder) / "report.html"
        cfg = zoo.gpt2("small")
        export(cfg, transformer.init_params(cfg, jax.random.key(0)), tokenizer, model)
        words = ["inspect", "--model", str(model), "--prompt", prompt, "--to", str(page)]
        for number in range(options.rounds):
            start = time.monotonic()
            done = subprocess.run(
                [sys.executable, str(ROOT / "run.py"), *words], check=True, capture_output=True, text=True,
                env=os.environ | {"LMJAX_CACHE": str(Path(folder) / "cache")},
            )  # fmt: skip
            seconds = time.monotonic() - start
            print(f"round {number + 1}: {seconds:.1f} s; {done.stdout.splitlines()[-1].partition(': ')[2]}", flush=True)


if __name__ == "__main__":
    main()
