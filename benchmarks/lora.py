"""LoRA beside full fine-tuning: the held-out loss of experiments/lora.py by rank, each at the best of four step sizes.

    python benchmarks/lora.py --base runs/small --text FILE --out results

Prints a table in Markdown, row by row. Each run is in the directory `results`, with what it says in a file beside it.
"""

import argparse
import contextlib
import json
from dataclasses import replace
from pathlib import Path

import jax

from lmjax import commands, experiment
from lmjax.experiment import Experiment
from lmjax.models.transformer import abstract_params
from lmjax.plan.counts import params
from lmjax.train import loop
from lmjax.trained import split
from lmjax.trees import count

ROOT = Path(__file__).parents[1]
FULL, ADAPTED = (0.005, 0.01, 0.02, 0.04), (0.01, 0.02, 0.04, 0.08)


def adapted(base: Experiment, rank: int | None) -> Experiment:
    """None: all parameters are trained. alpha is the rank, so that A B counts alike at any."""
    if rank is None:
        return replace(base, adapter=None)
    return replace(base, adapter=replace(base.adapter, rank=rank, alpha=float(rank)))


def final_loss(exp: Experiment, run: Path) -> float:
    """Nats a held-out token after the last step; what the run says goes into a file beside its directory. A run that is
    there already is gone on with."""
    with open(run.parent / f"{run.name}.log", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        loop.train(exp, run)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return next(value["eval_loss"] for value in map(json.loads, reversed(lines)) if "eval_loss" in value)


def trained_share(exp: Experiment) -> float:
    """Of all parameters of the model."""
    ours, _ = jax.eval_shape(lambda given: split(exp, given), abstract_params(exp.model))
    return count(ours) / params(exp.model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a run of experiments/small.py")
    parser.add_argument("--text", required=True, help="a file of text")
    parser.add_argument("--out", required=True, type=Path, help="a directory for runs and logs")
    parser.add_argument("--ranks", default="2,6,24")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    commands.prepare_libraries()
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = f"{options.base}/tokenizer/tokenizer.model"
    changes = [f"init_from={options.base}", f"tokenizer.path={tokenizer}", f"data.source.path={options.text}"]
    changes += [f"{name}={options.steps}" for name in ("steps", "evaluate_every", "checkpoint_every", "sample_every")]
    changes += ["sampling.max_new_tokens=1"]
    base = experiment.load(str(ROOT / "experiments" / "lora.py"), changes)
    print("| trained | share | " + "step sizes and losses | best | over full |\n|---|---|---|---|---|", flush=True)
    best_of_all = None
    for rank in [None, *map(int, options.ranks.split(","))]:
        losses = {}
        for rate in FULL if rank is None else ADAPTED:
            exp = adapted(replace(base, schedule=replace(base.schedule, peak=rate)), rank)
            losses[rate] = final_loss(exp, options.out / f"{rank or 'full'}-{rate}")
        best = min(losses.values())
        best_of_all = best_of_all or best
        known = replace(exp, model=replace(exp.model, vocab=base.model.vocab or 2048))
        name = "all" if rank is None else f"rank {rank}"
        each = ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in losses.items())
        print(
            f"| {name} | {trained_share(known):.2%} | {each} | {best:.3f} | {best / best_of_all - 1:+.1%} |", flush=True
        )


if __name__ == "__main__":
    main()
