"""A disk that is full: one line, and nothing lost."""

import json

import pytest

import run as command_line
from tests import tiny


def largest_file(kilobytes):
    """The beginning of a command that cannot write larger ones."""
    return ["bash", "-c", f'ulimit -f {kilobytes} && exec "$@"', "bash"]


@pytest.mark.parametrize(("kilobytes", "where"), [(10, "cache/tokens/"), (60, "runs/tiny")])
def test_a_disk_that_is_full_from_the_start_is_named(place, kilobytes, where):
    """The token store has 36 kB, a compiled program and the checkpoint more."""
    env = tiny.environment_of_a_process() | {"LMJAX_CACHE": str(place / "cache")}
    words = ["--config", "e.py", "--model.width=256", "--microbatches=1"]
    with tiny.spawn(words, place, before=largest_file(kilobytes), env=env) as process:
        _, err = process.communicate(timeout=180)
    assert process.returncode == 2
    assert err.startswith("error: ") and where in err and "File too large" in err, err
    assert err.count("\n") == 1, err


def test_a_full_disk_is_one_line_and_loses_nothing(place):
    """No file may grow beyond a limit: the checkpoint of the larger model does, what came before does not."""
    words = ["--config", "e.py", "--model.width=128", "--microbatches=1", "--steps=7"]
    env = tiny.environment_of_a_process() | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    with tiny.spawn(words, place, before=largest_file(300), env=env) as process:
        _, err = process.communicate(timeout=180)
    assert process.returncode == 2
    assert err.count("\n") == 1, err
    assert "the checkpoint could not be written: File too large; earlier ones are intact" in err
    assert command_line.main(words) == 0
    steps = [json.loads(line) for line in (place / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == list(range(1, 8))
