"""Pods that are not here, by TPU's own compiler (extra [plan]): `python -m pytest -o addopts= tests/pods`."""

import json
import os
import subprocess
import sys

import pytest

from tests import tiny


def plan(*words):
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    command = [sys.executable, "run.py", "plan", *words]
    return subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True)


def test_a_step_compiles_with_the_kernel_for_tpu(tmp_path):
    """A Llama's shape, documents apart; keys come from the other devices of a row."""
    done = plan(
        "--config", "experiments/llama_small.py", "--topology", "v5p:2x2x2", "--json", str(tmp_path / "plan.json"),
        "--mesh.data=1", "--mesh.fsdp=2", "--mesh.sequence=2", "--mesh.tensor=2", "--model.layers=2", "--batch_size=8",
        "--microbatches=2", "--model.width=1024", "--model.heads=16",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["fits"]
    planned = figures["parameter_bytes"] + figures["optimizer_bytes"] + figures["batch_bytes"]
    assert planned <= figures["argument_bytes"] < 1.01 * planned
    for kind in ("all-gather", "reduce-scatter"):
        assert f"between devices: {kind}" in done.stdout
    assert figures["kernel"] == "Splash"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology", "v5e:3x5"], "there is no such pod"),
        (["--topology", "v5p:4x4x4", "--mesh.data=1", "--mesh.fsdp=8", "--mesh.tensor=8"], "does not lie on a pod"),
    ],
)
def test_mistakes_are_one_line(words, message):
    done = plan("--config", "experiments/gpt3_350m.py", "--model.heads=16", *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
