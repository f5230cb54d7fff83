"""What a run says beforehand, and how one ends that is too large for its machine."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from lmjax.errors import UserError
from lmjax.plan.devices import of_this_machine
from lmjax.sharding import Mesh, build_mesh
from lmjax.train import loop, predict
from tests import tiny


@pytest.fixture(scope="module")
def experiment():
    cfg = tiny.gpt2(layers=1, width=16, heads=2, context=16, vocab=258)
    return tiny.experiment("unused", model=cfg, mesh=Mesh(data=8), microbatches=1)


def test_a_run_predicts_and_then_measures(text_file, tmp_path, capsys):
    loop.train(tiny.experiment(text_file, steps=4), tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    plan = next(i for i, line in enumerate(lines) if line.startswith("plan: memory: "))
    first = next(i for i, line in enumerate(lines) if line.startswith("step "))
    assert plan < first
    best, measured, share = re.search(r"at best ([\d,]+) tokens/s, ([\d,]+) \((\d+)%\)", lines[-1]).groups()
    assert best in lines[plan]
    assert int(share) == pytest.approx(100 * int(measured.replace(",", "")) / int(best.replace(",", "")), abs=0.6)


def test_a_step_that_cannot_fit_never_begins(text_file, tmp_path, monkeypatch, capsys):
    here = of_this_machine()
    monkeypatch.setattr(
        predict, "of_this_machine", lambda: replace(here, device=replace(here.device, memory=300_000.0))
    )
    with pytest.raises(UserError, match=r"out of memory: .* too much .*; --.* is the first to try"):
        loop.train(tiny.experiment(text_file, steps=4, microbatches=1), tmp_path / "run")
    assert "what could help" in capsys.readouterr().out
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_device_that_runs_out_ends_with_remedies(experiment):
    """By a real allocation that fails."""
    said = []
    mesh = build_mesh(experiment.mesh)
    made = predict.predict(experiment, mesh, said.append)
    with pytest.raises(UserError, match="out of memory"):
        with predict.telling_what_helps(made, said.append):
            jnp.zeros((1 << 46,)).block_until_ready()
    assert any(line.startswith("  --microbatches=") for line in said)
    with pytest.raises(jax.errors.JaxRuntimeError, match="other"):
        with predict.telling_what_helps(made, said.append):
            raise jax.errors.JaxRuntimeError("INTERNAL: other")
