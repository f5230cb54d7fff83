"""What `plan` says of mistakes: one line, exit code 2."""

import sys

import pytest

import run as command_line
from tests import tiny

GPT3 = str(tiny.ROOT / "experiments/gpt3_175b.py")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology", "v9z:2x2"], "--topology v9z:2x2: expected here, or KIND:SHAPE with KIND one of v5e, v5p, v6e"),
        (["--topology", "v5p:8x8"], "--topology v5p:8x8: expected 3 number(s), as v5p:4x4x4"),
        (
            ["--topology", "h100:36", "--mesh.data=1", "--mesh.fsdp=1", "--mesh.tensor=36"],
            "mesh: kv_heads of size 96 cannot be split 36 ways (tensor); 32 or 48 ways would do",
        ),
        (
            ["--topology", "h100:96", "--mesh.data=2", "--mesh.fsdp=48", "--mesh.tensor=1", "--batch_size=1544"],
            "batch_size 1544 / microbatches 8 = 193 rows cannot be shared by 96 devices",
        ),
        (["--topology", "h100:8", "--mesh.fsdp=3"], "does not fit 8 device(s)"),
        (["--topology", "h100:8", "--price=-1"], "--price -1.0: expected 0 or more"),
    ],
)
def test_a_mistake_is_one_line(words, message, capsys):
    assert command_line.main(["plan", "--config", GPT3, *words]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert message in told.err
    assert told.out == ""


def test_without_the_compiler_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "libtpu", None)  # importing it fails, installed or not
    assert command_line.main(["plan", "--config", GPT3]) == 2
    told = capsys.readouterr()
    assert told.err == (
        "error: --topology v5p:8x8x8: compiling for TPU needs libtpu: python -m pip install -e '.[plan]'\n"
    )
