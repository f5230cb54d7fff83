"""kill -9 at random steps, restarted until finished, equals the uninterrupted run."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np

from lmjax.loaded import load_run
from tests import tiny

EXPERIMENT = """
from tests import tiny
from dataclasses import replace
experiment = replace(tiny.experiment({text!r}), steps=40, checkpoint_every=3, evaluate_every=20, sample_every=40)
"""


def command(tmp_path, run):
    return [sys.executable, "run.py", "--config", str(tmp_path / "experiment.py"), "--run", str(run)]


def lines(run):
    file = run / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def test_killed_and_restarted_until_finished(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(tiny.text(20_000))
    (tmp_path / "experiment.py").write_text(EXPERIMENT.format(text=str(text)))
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    subprocess.run(
        command(tmp_path, straight), cwd=tiny.ROOT, env=tiny.environment_of_a_process(), check=True, capture_output=True
    )

    rng = random.Random(os.getpid())  # another time in each run of the tests; the law holds for all
    kills, finished = 0, False
    while not finished:
        goal = lines(killed) + rng.randrange(1, 18) if kills < 2 else 10**9
        with subprocess.Popen(
            command(tmp_path, killed),
            cwd=tiny.ROOT,
            env=tiny.environment_of_a_process(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            while process.poll() is None and lines(killed) < goal:
                time.sleep(0.005)
            finished = process.poll() is not None
            if finished:
                assert process.returncode == 0, process.stderr.read().decode()
            process.send_signal(signal.SIGKILL)
        kills += not finished
    assert kills >= 1

    runs = []
    for run in (straight, killed):
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        runs.append([{k: v for k, v in m.items() if k != "tokens_per_second"} for m in metrics])
    assert [m["step"] for m in runs[0] if "loss" in m] == list(range(1, 41))
    assert runs[0] == runs[1]
    a, b = (load_run(run).params for run in (straight, killed))
    assert all((x == y).all() for x, y in zip(map(np.asarray, leaves(a)), map(np.asarray, leaves(b)), strict=True))


def leaves(tree):
    return [leaf for value in tree.values() for leaf in (leaves(value) if isinstance(value, dict) else [value])]
