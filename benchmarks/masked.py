"""Pretraining by masked tokens beside none: experiments/mlm_package.py from the run of mlm_small.py and from scratch,
each with the best of the same four settings of the optimizer, over several seeds.

    python run.py --config experiments/mlm_small.py
    python benchmarks/masked.py --base runs/mlm_small --out results

Prints a table in Markdown, row by row. The setting is chosen by the first seed's accuracy, for both alike; the seed
decides the fresh parameters, dropout and the order of the rows. Each run is in the directory `results`, with what it
says in a file beside it.
"""

import argparse
import contextlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from lmjax import commands, experiment
from lmjax.experiment import Experiment
from lmjax.tasks.text_metrics import standard_error
from lmjax.train import loop

ROOT = Path(__file__).parents[1]
# the step size of Muon, and what share of it AdamW takes for embedding and labels
SETTINGS = ((0.01, 0.15), (0.02, 0.15), (0.01, 0.6), (0.02, 0.6))


def accuracy(exp: Experiment, run: Path) -> float:
    """Of the held-out files after the last step. A run that is there already is gone on with."""
    with open(run.parent / f"{run.name}.log", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        loop.train(exp, run)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return next(value["accuracy"] for value in map(json.loads, reversed(lines)) if "accuracy" in value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a run of experiments/mlm_small.py")
    parser.add_argument("--out", required=True, type=Path, help="a directory for runs and logs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    commands.prepare_libraries()
    options.out.mkdir(parents=True, exist_ok=True)
    changes = [f"init_from={options.base}", f"tokenizer.path={options.base}/tokenizer/tokenizer.model"]
    changes += [f"{name}={options.steps}" for name in ("steps", "evaluate_every", "checkpoint_every", "sample_every")]
    base = experiment.load(str(ROOT / "experiments" / "mlm_package.py"), changes)
    print(
        "| | step size x adam_scale: accuracy, seed 0 | by seed | mean | standard error |\n|---|---|---|---|---|",
        flush=True,
    )
    found = {}
    for name in ("from scratch", "fine-tuned"):
        start = base if name == "fine-tuned" else replace(base, init_from=None)

        def trained(setting: tuple[float, float], seed: int, name=name, start=start) -> float:
            rate, scale = setting
            optimizer = replace(start.optimizer, adam_scale=scale)
            exp = replace(start, schedule=replace(start.schedule, peak=rate), optimizer=optimizer, seed=seed)
            return accuracy(exp, options.out / f"{name.replace(' ', '-')}-{rate:g}-{scale:g}-{seed}")

        tried = {setting: trained(setting, 0) for setting in SETTINGS}
        best = max(tried, key=tried.get)
        by_seed = found[name] = [trained(best, seed) for seed in range(options.seeds)]
        each = ", ".join(f"{rate:g} x {scale:g}: {share:.3f}" for (rate, scale), share in tried.items())
        seeds, error = ", ".join(f"{share:.3f}" for share in by_seed), standard_error(by_seed)
        print(f"| {name} | {each} | {seeds} | {np.mean(by_seed):.3f} | {error:.3f} |", flush=True)
    ahead = np.mean(found["fine-tuned"]) - np.mean(found["from scratch"])
    error = sum(standard_error(shares) ** 2 for shares in found.values()) ** 0.5
    print(f"fine-tuned is ahead by {ahead:.3f}, {ahead / max(error, 1e-9):.1f} standard errors of the difference")


if __name__ == "__main__":
    main()
