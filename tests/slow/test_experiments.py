"""Every experiment that names a topology fits it (extra [plan]; some minutes): `python -m pytest -o addopts= tests/slow`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmjax import experiment as experiments
from tests import tiny

FILES = [file for file in sorted(Path(tiny.ROOT, "experiments").glob("*.py")) if "topology=" in file.read_text()]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_fits_the_topology_that_it_names(file, tmp_path):
    assert experiments.load(str(file), []).topology
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    command = [sys.executable, "run.py", "plan", "--config", str(file), "--json", str(tmp_path / "plan.json")]
    done = subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "plan.json").read_text())
    planned = figures["parameter_bytes"] + figures["optimizer_bytes"] + figures["batch_bytes"]
    # what the device adds by its layout
    assert 0 <= figures["argument_bytes"] - planned < 0.01 * planned
