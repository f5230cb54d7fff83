"""Starting `run.py train` in several processes on 127.0.0.1, each with simulated devices of its own."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests import tiny

STEPS = 12
EXPERIMENT = """
from dataclasses import replace
from lmjax.sharding import Mesh
from tests import tiny
experiment = replace(
    tiny.experiment({text!r}), mesh=Mesh(data=2, fsdp=2, tensor=2), steps={steps}, checkpoint_every=4, evaluate_every=6,
)
"""


@dataclass
class Done:
    code: int
    out: str
    err: str


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(devices: int, **more: str) -> dict[str, str]:
    flags = f"{tiny.QUICK_TO_COMPILE} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(tiny.ROOT), "PYTHONUNBUFFERED": "1"} | more


def start(words: list[str], *, devices: int, program=("run.py",), **more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *program, *words], cwd=tiny.ROOT, env=environment(devices, **more), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def start_two(config: Path, run: Path, *words: str, apart=None, environments=None) -> list[subprocess.Popen]:
    """apart, environments: further words and variables of one process, by its number."""
    place = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--peer-timeout", "10"]
    return [
        start(
            [
                "--config",
                str(config),
                "--run",
                str(run),
                *place,
                "--process",
                str(i),
                *words,
                *(apart or {}).get(i, []),
            ],
            devices=4,
            **(environments or {}).get(i, {}),
        )
        for i in range(2)
    ]


def ended(processes: list[subprocess.Popen], limit: float = 120) -> list[Done]:
    """What became of them; those that hang are killed, and fail the test."""
    until, done = time.monotonic() + limit, []
    try:
        for process in processes:
            out, err = process.communicate(timeout=max(1, until - time.monotonic()))
            done.append(Done(process.returncode, ours(out), err))
    finally:
        for process in processes:
            process.kill()
    return done


# what Gloo writes to stdout, piece by piece and from several threads, so that pieces of two lines mix under load
GLOO = re.compile(r"\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is :|\d|\s")


def ours(out: str) -> str:
    """Without what XLA's collectives for CPU write."""
    return "".join(line for line in out.splitlines(keepends=True) if GLOO.sub("", line))


def one_line(done: Done, *parts: str):
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("error: ")
    for part in parts:
        assert part in done.err


def alone(config: Path, run: Path, *words: str) -> Done:
    """One process with all eight devices."""
    return ended([start(["--config", str(config), "--run", str(run), *words], devices=8)])[0]


def wait_for_step(run: Path, step: int, processes: list[subprocess.Popen]) -> None:
    """Until metrics.jsonl has that step."""
    until = time.monotonic() + 120
    while not any(line.get("step", 0) >= step for line in metrics(run)):
        assert time.monotonic() < until, "the step never came"
        for process in processes:
            assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def metrics(run: Path) -> list[dict]:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def figures(run: Path) -> list[dict]:
    """All metrics but the speed."""
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in metrics(run)]
