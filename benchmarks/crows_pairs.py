"""CrowS-Pairs on a decoder of GPT-2's shape: lmjax beside transformers with the sentences batched by length.

    pip install -e '.[parity]'
    python benchmarks/crows_pairs.py --data crows_pairs.csv --tokenizer gpt2/

The weights are random (124M parameters, float32); --tokenizer is a directory with GPT-2's vocab.json and merges.txt.
Both score every sentence by the sum of log p of its tokens after <|endoftext|>, in turns in one process. transformers
reads rows sorted by length and padded to the longest of their batch. Prints the seconds of both, the first round of
lmjax with what it compiles apart, the ratio of the medians, and how far the scores are from each other.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers

import lmjax
from lmjax import commands
from lmjax.evaluate import suites
from lmjax.evaluate.crows_pairs import CrowsPairs
from lmjax.evaluate.settings import Settings


def made(tokenizer: Path, layers: int) -> tuple[Path, transformers.GPT2LMHeadModel]:
    """A directory of a random model with that tokenizer, and the model."""
    folder = Path(tempfile.mkdtemp())
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=layers)).eval()
    model.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tokenizer / name, folder)
    return folder, model


def theirs(model, rows: list[list[int]], batch: int) -> np.ndarray:
    """The sum of log p of every row after its first token."""
    sums, order = np.zeros(len(rows)), sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch):
        index = order[start : start + batch]
        longest = max(len(rows[i]) for i in index)
        ids = torch.zeros((len(index), longest), dtype=torch.long)
        here = torch.zeros_like(ids)
        for b, i in enumerate(index):
            ids[b, : len(rows[i])], here[b, : len(rows[i])] = torch.tensor(rows[i]), 1
        with torch.inference_mode():
            logits = model(ids, attention_mask=here).logits[:, :-1]
            log_p = torch.gather(logits, 2, ids[:, 1:, None])[..., 0] - torch.logsumexp(logits, -1)
        sums[index] = (log_p * here[:, 1:]).sum(1).double().numpy()
    return sums


def timed(function) -> tuple[tuple[float, float], object]:
    """((seconds, seconds of all processors), what it gives)."""
    start, busy = time.perf_counter(), time.process_time()
    found = function()
    return (time.perf_counter() - start, time.process_time() - busy), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="crows_pairs_anonymized.csv")
    parser.add_argument("--tokenizer", required=True, type=Path, help="a directory with vocab.json and merges.txt")
    parser.add_argument("--limit", type=int, help="only the first so many pairs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12, help="fewer for a quick look")
    parser.add_argument("--batch", type=int, default=32, help="of transformers")
    options = parser.parse_args()
    commands.prepare_libraries()
    folder, model = made(options.tokenizer, options.layers)
    ours, suite = lmjax.load(folder), CrowsPairs.of(Settings(data=options.data, limit=options.limit))
    end = json.loads((folder / "vocab.json").read_text())["<|endoftext|>"]
    rows = [[end, *ours.tokenizer.encode(text)] for pair in suite.pairs for text in (pair.more, pair.less)]
    first, result = timed(lambda: suites.run(suite, ours))
    seconds: dict[str, list[tuple[float, float]]] = {"lmjax": [], "transformers": []}
    for _ in range(options.rounds):
        spent, sums = timed(lambda: theirs(model, rows, options.batch))
        seconds["transformers"].append(spent)
        seconds["lmjax"].append(timed(lambda: suites.run(suite, ours))[0])
    scores = np.array([list(pair.values()) for pair in result.extra["pairs"]]).ravel()
    medians = {name: [statistics.median(kind) for kind in zip(*each, strict=True)] for name, each in seconds.items()}
    print(f"{len(suite.pairs)} pairs, {sum(map(len, rows)):,} tokens, {options.layers} layers")
    for kind, name in enumerate(("seconds", "seconds of processors")):
        mine, other = medians["lmjax"][kind], medians["transformers"][kind]
        print(f"{name}: lmjax {mine:.2f} (first round {first[kind]:.2f}), transformers {other:.2f}")
        print(f"times as fast by {name}: {other / mine:.2f}")
    print(f"largest difference of a score: {np.abs(scores - sums).max():.1e} nats of {np.abs(sums).mean():.0f}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
