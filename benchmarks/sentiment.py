"""Sentiment from scratch: experiments/sst2.py with three seeds beside scikit-learn's TF-IDF and logistic regression.

    python -m pip install scikit-learn
    python benchmarks/sentiment.py --train train.tsv --dev dev.tsv --test test.tsv --out DIR

Tables of sentence and label, without a first line of names. The baseline's n-grams and C, and a run's checkpoint, are
those that are best on dev; test is read once by each. Every run is the command line in a process of its own.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from lmjax.tasks.text_metrics import wilson

try:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
except ImportError:
    sys.exit("error: the baseline needs scikit-learn: python -m pip install scikit-learn")

ROOT = Path(__file__).parents[1]
# words as they stand between spaces: SST's texts are cut into tokens already
GRAMS = {
    **{f"words 1-{n}": {"ngram_range": (1, n), "token_pattern": r"\S+"} for n in (1, 2, 3)},
    **{f"characters 2-{n}": {"ngram_range": (2, n), "analyzer": "char"} for n in (4, 5, 6)},
}
INVERSE_PENALTIES = (0.3, 1, 3, 10, 30)


def read(file: str) -> tuple[list[str], list[str]]:
    """(texts, labels)."""
    with open(file, encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [text for text, _ in rows], [label for _, label in rows]


def baselines(options, kind: str) -> tuple[str, float, float, int, float]:
    """(what was chosen, accuracy on dev, accuracy on test, texts of test, seconds) of the n-grams of one kind."""
    began, best = time.perf_counter(), None
    (texts, labels), (dev, dev_labels), (test, test_labels) = map(read, (options.train, options.dev, options.test))
    for name, settings in GRAMS.items():
        if not name.startswith(kind):
            continue
        vectors = TfidfVectorizer(sublinear_tf=True, **settings)
        x, x_dev = vectors.fit_transform(texts), vectors.transform(dev)
        for c in INVERSE_PENALTIES:
            model = LogisticRegression(C=c, max_iter=1000).fit(x, labels)
            score = model.score(x_dev, dev_labels)
            if best is None or score > best[0]:
                best = score, f"{name}, C {c:g}", vectors, model
    score, chosen, vectors, model = best
    on_test = model.score(vectors.transform(test), test_labels)
    return chosen, score, on_test, len(test), time.perf_counter() - began


def verb(*words: str, log: Path) -> None:
    with open(log, "a", encoding="utf-8") as out:
        done = subprocess.run(
            [sys.executable, "run.py", *words], cwd=ROOT, env=os.environ, stdout=out, stderr=subprocess.STDOUT
        )
    if done.returncode:
        sys.exit(f"error: {' '.join(words)}: see {log}")


def runs(options) -> Iterator[tuple[int, float, float, float]]:
    """(seed, accuracy on dev, accuracy on test, seconds from the start of the command to its end) of each run."""
    for seed in range(options.seeds):
        run = options.out / f"seed-{seed}"
        log, began = options.out / f"seed-{seed}.log", time.perf_counter()
        files = [f"--data.source.path={options.train}", f"--data.source.held_out.path={options.dev}"]
        verb("--config", "experiments/sst2.py", "--run", str(run), f"--seed={seed}", *files, log=log)
        seconds, figures = time.perf_counter() - began, []
        for data in ([], ["--data", options.test]):
            result = options.out / f"seed-{seed}-{'test' if data else 'dev'}.json"
            verb("evaluate", "--model", str(run), "--step", "best", "--json", str(result), *data, log=log)
            figures.append(json.loads(result.read_text(encoding="utf-8"))["accuracy"])
        yield seed, *figures, seconds


def row(who: str, dev: float, test: float, count: int, seconds: float) -> str:
    low, high = wilson(round(test * count), count)
    return f"| {who} | {dev:.2%} | {test:.2%} | {low:.2%} to {high:.2%} | {seconds:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "dev", "test"):
        parser.add_argument(f"--{name}", required=True, type=os.path.abspath, help="a table of sentence and label")
    parser.add_argument("--out", required=True, type=Path, help="a new directory for runs, logs and figures")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    options.out = options.out.absolute()
    if options.out.exists():
        sys.exit(f"error: --out {options.out} is there already")
    options.out.mkdir(parents=True)
    names = ("scikit-learn", "jax", "jaxlib")
    print(", ".join(f"{name} {version(name)}" for name in names) + f", {os.cpu_count()} CPUs, {time.strftime('%F')}\n")
    print("| who | dev | test | 95 % | s |\n|---|---|---|---|---|", flush=True)
    for kind in ("words", "characters"):
        chosen, dev, test, count, seconds = baselines(options, kind)
        print(row(f"TF-IDF + logistic regression, {chosen}", dev, test, count, seconds), flush=True)
    found = []
    for seed, dev, test, seconds in runs(options):
        found.append((dev, test, seconds))
        print(row(f"sst2.py, seed {seed}", dev, test, count, seconds), flush=True)
    dev, test, seconds = (sum(column) / len(found) for column in zip(*found, strict=True))
    print(f"| sst2.py, mean | {dev:.2%} | {test:.2%} | | {seconds:.0f} |")


if __name__ == "__main__":
    main()
