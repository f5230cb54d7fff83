"""What a run says beforehand, and how one ends that is too large for its machine."""

import re

import pytest

from lmjax.train import loop
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_device")


def test_a_run_predicts_and_then_measures(text_file, tmp_path, capsys):
    loop.train(tiny.experiment(text_file, steps=4), tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    plan = next(i for i, line in enumerate(lines) if line.startswith("plan: memory: "))
    first = next(i for i, line in enumerate(lines) if line.startswith("step "))
    assert plan < first
    best, measured, share = re.search(r"at best ([\d,]+) tokens/s, ([\d,]+) \((\d+)%\)", lines[-1]).groups()
    assert best in lines[plan]
    assert int(share) == pytest.approx(100 * int(measured.replace(",", "")) / int(best.replace(",", "")), abs=0.6)
