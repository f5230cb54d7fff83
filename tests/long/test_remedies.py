"""What helps where a step does not fit: compiled, and told by a run that cannot begin or that runs out."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from lmjax.errors import UserError
from lmjax.plan import report
from lmjax.plan.devices import of_this_machine
from lmjax.plan.planning import plan
from lmjax.plan.remedies import remedies
from lmjax.sharding import Mesh, build_mesh
from lmjax.train import forecast, loop
from tests import tiny
from tests.plan.test_planning import experiment, small


def test_what_does_not_fit_gets_remedies_that_help():
    """Each is a real experiment that differs as it says; the first of the list fits where any does."""
    here = of_this_machine()
    tight = experiment(tiny.gpt2(vocab=96, context=128), mesh=Mesh(data=8))
    needed = plan(tight, here).needed
    made = plan(tight, small(here, 0.7 * needed))
    assert not made.fits
    assert "too much" in report.verdict(made)
    told = []
    ranked = remedies(made, told.append, rounds=1)
    assert {r.overrides for r in ranked} == {r.overrides for r in told}
    assert {override.split("=")[0] for r in ranked for override in r.overrides} >= {
        "microbatches",
        "mesh.fsdp",
        "model.remat",
    }
    assert ranked[0].plan.fits
    assert [r.plan.fits for r in ranked] == sorted((r.plan.fits for r in ranked), reverse=True)
    more = [r.plan.needed for r in ranked if r.overrides[0].startswith("microbatches")]
    assert all(n < needed for n in more)


def test_a_step_that_cannot_fit_never_begins(text_file, tmp_path, monkeypatch, capsys):
    here = of_this_machine()
    monkeypatch.setattr(
        forecast, "of_this_machine", lambda: replace(here, device=replace(here.device, memory=300_000.0))
    )
    with pytest.raises(UserError, match=r"out of memory: .* too much .*; --.* is the first to try"):
        loop.train(tiny.experiment(text_file, steps=4, microbatches=1), tmp_path / "run")
    assert "what could help" in capsys.readouterr().out
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_device_that_runs_out_ends_with_remedies():
    """By a real allocation that fails."""
    said = []
    cfg = tiny.gpt2(layers=1, width=16, heads=2, context=16, vocab=258)
    large = tiny.experiment("unused", model=cfg, mesh=Mesh(data=8), microbatches=1)
    mesh = build_mesh(large.mesh)
    made = forecast.forecast(large, mesh, said.append)
    with pytest.raises(UserError, match="out of memory"):
        with forecast.telling_what_helps(made, said.append):
            jnp.zeros((1 << 46,)).block_until_ready()
    assert any(line.startswith("  --microbatches=") for line in said)
    with pytest.raises(jax.errors.JaxRuntimeError, match="other"):
        with forecast.telling_what_helps(made, said.append):
            raise jax.errors.JaxRuntimeError("INTERNAL: other")
