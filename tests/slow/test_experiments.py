"""What takes minutes (extra [plan]): `python -m pytest -s -o addopts= tests/slow`. With -s the rows of README's table of
plans are printed, as benchmarks/plans.py has them."""

import re
from pathlib import Path

import pytest

from benchmarks.plans import planned, row
from lmjax import experiment as experiments
from tests import tiny
from tests.pods.test_tpu import plan

FILES = [file for file in sorted(Path(tiny.ROOT, "experiments").glob("*.py")) if "topology=" in file.read_text()]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_fits_the_topology_that_it_names(file):
    assert experiments.load(str(file), []).topology
    figures = planned(file)
    print("\n" + row(file, figures))
    assert figures["fits"]
    counted = figures["parameter_bytes"] + figures["optimizer_bytes"] + figures["batch_bytes"]
    # what the device adds by its layout
    assert 0 <= figures["argument_bytes"] - counted < 0.01 * counted


def test_what_does_not_fit_says_by_how_much_and_what_helps():
    done = plan(
        "--config", "experiments/gpt3_125m.py", "--topology", "v5e:2x2", "--mesh.data=4", "--mesh.fsdp=1",
        "--batch_size=512", "--microbatches=1", "--model.remat=nothing", "--model.layers=2",
    )  # fmt: skip
    assert done.returncode == 1
    assert "too much" in done.stdout
    assert "--microbatches=" in done.stdout
    first = done.stdout.split("the best first:\n")[1].splitlines()[0]
    assert ", fits," in first


def test_search_finds_the_largest_batch_that_fits():
    done = plan(
        "--config", "experiments/gpt3_350m.py", "--topology", "v5e:2x2", "--mesh.data=4", "--mesh.fsdp=1",
        "--batch_size=4", "--microbatches=1", "--model.remat=nothing", "--search",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    print("\n" + done.stdout)
    *tried, best = done.stdout.split("the largest batch that fits, by compiling:\n")[1].splitlines()
    fits = {int(re.search(r"batch_size ([\d,]+)", line)[1].replace(",", "")): ", fits" in line for line in tried}
    largest = max(size for size in fits if fits[size])
    assert fits[largest + 4] is False
    assert best.startswith(f"--batch_size={largest}: ")
