"""Two processes of four simulated devices each, on 127.0.0.1: `python -m pytest -o addopts= tests/hosts`."""

import json
import signal
import time

import jax
import numpy as np
import pytest

from lmjax import checkpoint
from lmjax.loaded import load_run
from tests import tiny
from tests.hosts.processes import (
    EXPERIMENT,
    Done,
    alone,
    ended,
    figures,
    free_port,
    metrics,
    start,
    start_two,
    wait_for_step,
)

STEPS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "text.txt").write_text(tiny.text(20_000))
    (folder / "experiment.py").write_text(EXPERIMENT.format(text=str(folder / "text.txt"), steps=STEPS))
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return folder / "experiment.py"


@pytest.fixture(scope="module")
def one(folder, config):
    """The run of one process with all eight devices."""
    done = alone(config, folder / "one")
    assert done.code == 0, done.err
    return folder / "one"


@pytest.fixture(scope="module")
def two(folder, config):
    """The same by two processes, never interrupted."""
    done = ended(start_two(config, folder / "two"))
    assert [d.code for d in done] == [0, 0], [d.err for d in done]
    return folder / "two", done


def same_losses(a, b, rel):
    assert [line["step"] for line in metrics(a)] == [line["step"] for line in metrics(b)]
    for x, y in zip(metrics(a), metrics(b)):
        for name in ("loss", "eval_loss"):
            assert x.get(name) == (None if name not in y else pytest.approx(y[name], rel=rel))


def same_bits(a, b):
    assert figures(a) == figures(b)
    for x, y in zip(*(jax.tree.leaves(load_run(run).params) for run in (a, b))):
        assert np.array_equal(x, y)


def one_line(done: Done, *parts: str):
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("error: ")
    for part in parts:
        assert part in done.err


def test_two_processes_compute_what_one_does(one, two):
    run, done = two
    same_losses(one, run, rel=1e-6)
    assert [line["step"] for line in metrics(run) if "loss" in line] == list(range(1, STEPS + 1))
    assert "of 2 processes" in done[0].out
    assert "mesh data 2 x fsdp 2 x tensor 2" in done[0].out
    assert done[1].out == ""
    assert [d.err for d in done] == ["", ""]


@pytest.mark.parametrize(
    ("mesh", "each"),
    [
        ({"data": 8}, 4),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 4),
        ({"data": 1, "tensor": 8}, 8),
        ({"data": 1, "fsdp": 2, "sequence": 4}, 4),
    ],
    ids=["data", "mixed", "tensor", "sequence"],
)
def test_each_process_reads_only_the_rows_that_its_devices_hold(mesh, each):
    place = f"127.0.0.1:{free_port()}"
    words = [[place, str(i), json.dumps(mesh)] for i in range(2)]
    done = ended([start(w, devices=4, program=["-m", "tests.hosts.rows"]) for w in words])
    assert [d.code for d in done] == [0, 0], [d.err for d in done]
    told = [json.loads(d.out.split("RESULT")[1]) for d in done]
    assert sorted({row for t in told for row in t["rows"]}) == list(range(8))
    for t in told:
        assert len(t["rows"]) == each
        assert t["read"] == each * 17


def test_a_checkpoint_is_written_once_and_is_whole(two):
    """By both: the arrays' files are of two processes, and every file has its checksum."""
    run, _ = two
    manifest = checkpoint.verify(run / "checkpoints", STEPS)
    on_disk = {
        str(f.relative_to(run / "checkpoints" / str(STEPS)))
        for f in (run / "checkpoints" / str(STEPS)).rglob("*")
        if f.is_file()
    }
    assert set(manifest.files) == on_disk - {checkpoint.MANIFEST}
    assert {part for name in on_disk for part in name.split("/") if part.startswith("ocdbt.process")} == {
        "ocdbt.process_0",
        "ocdbt.process_1",
    }
    assert [f.name for f in (run / "checkpoints").iterdir() if not f.name.isdigit()] == []


def test_a_signal_to_one_stops_both_after_the_same_step_and_both_go_on(folder, config, two):
    run = folder / "signalled"
    # two hosts that share the run's directory and no cache: each makes its own token store
    caches = {i: {"LMJAX_CACHE": str(folder / f"cache{i}")} for i in range(2)}
    processes = start_two(config, run, environments=caches)
    wait_for_step(run, 2, processes)
    processes[1].send_signal(signal.SIGTERM)
    done = ended(processes)
    assert [d.code for d in done] == [143, 143], [d.err for d in done]
    assert [d.err for d in done] == ["", ""]
    steps = checkpoint.steps_on_disk(run / "checkpoints")
    assert f"stopped by SIGTERM after step {steps[-1]}, saved" in done[0].out
    assert 2 <= steps[-1] <= STEPS
    assert max(line["step"] for line in metrics(run)) == steps[-1]
    stores = [[store.name for store in (folder / f"cache{i}" / "tokens").iterdir()] for i in range(2)]
    assert len(stores[0]) == 1
    assert stores[0] == stores[1]
    done = ended(start_two(config, run))
    assert [d.code for d in done] == [0, 0], [d.err for d in done]
    same_bits(run, two[0])


def test_ctrl_c_at_one_stops_both(folder, config):
    run = folder / "interrupted"
    processes = start_two(config, run)
    wait_for_step(run, 2, processes)
    processes[0].send_signal(signal.SIGINT)
    assert [d.code for d in ended(processes)] == [130, 143]


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_and_started_again_equals_uninterrupted(folder, config, two, victim):
    """kill -9 of one: the other ends soon, with one line; both started again end with the same bits."""
    run = folder / f"killed{victim}"
    processes = start_two(config, run)
    wait_for_step(run, 6, processes)
    start = time.monotonic()
    processes[victim].kill()
    done = ended(processes, limit=60)
    assert time.monotonic() - start < 30
    saved = checkpoint.steps_on_disk(run / "checkpoints")
    survivor = done[1 - victim]
    assert survivor.code not in (0, -signal.SIGKILL)
    one_line(survivor, f"process {victim}", "the newest checkpoint is good: start the same command again on all hosts")
    done = ended(start_two(config, run))
    assert [d.code for d in done] == [0, 0], [d.err for d in done]
    assert ("resuming" in done[0].out) == bool(saved)
    same_bits(run, two[0])


def test_another_number_of_processes_goes_on_with_the_same_batches(folder, config, one):
    run = folder / "fewer"
    done = ended(start_two(config, run, "--steps=6"))
    assert [d.code for d in done] == [0, 0], [d.err for d in done]
    done = alone(config, run, "--steps=12", "--accept-changes")
    assert done.code == 0, done.err
    whole = folder / "whole"
    assert alone(config, whole, "--steps=6").code == 0
    assert alone(config, whole, "--steps=12", "--accept-changes").code == 0
    same_losses(whole, run, rel=1e-6)


def test_training_starts_from_a_trained_model_on_both(folder, config, two):
    """A run, and a Hugging Face directory; as one process does."""
    exported = folder / "exported"
    (done,) = ended([start(["export", "--model", str(two[0]), "--to", str(exported)], devices=1)])
    assert done.code == 0, done.err
    tokenizer = ["--tokenizer=HuggingFace", f"--tokenizer.path={exported}"]
    for name, source, words in (("run", two[0], []), ("directory", exported, tokenizer)):
        words = ["--steps=2", f"--init_from={source}", *words]
        done = ended(start_two(config, folder / f"two_from_{name}", *words))
        assert [d.code for d in done] == [0, 0], [d.err for d in done]
        done = alone(config, folder / f"one_from_{name}", *words)
        assert done.code == 0, done.err
        same_losses(folder / f"one_from_{name}", folder / f"two_from_{name}", rel=1e-6)
        assert metrics(folder / f"two_from_{name}")[0]["loss"] < metrics(two[0])[0]["loss"] - 1


def test_what_differs_between_processes_is_named(folder, config):
    run = folder / "differing"
    done = ended(start_two(config, run, apart={1: ["--optimizer.b2=0.9"]}))
    assert [d.code for d in done] == [2, 2]
    for d in done:
        one_line(d, "optimizer.b2 is 0.95 on process 0 and 0.9 on process 1")
    assert not run.exists()


def test_a_directory_that_is_not_shared_is_an_error_at_the_start(folder, config):
    runs = folder / "here", folder / "there"
    # the last --run counts
    done = ended(start_two(config, runs[0], apart={1: ["--run", str(runs[1])]}))
    assert [d.code for d in done] == [2, 2]
    for d in done:
        one_line(d, "process 1 does not see what process 0 writes there; expected a directory that all hosts share")
    assert not runs[0].exists()
    assert not runs[1].exists()


def test_a_fault_of_one_ends_the_other_with_its_reason(folder, config):
    """The second one's cache cannot be written."""
    blocked = folder / "blocked"
    blocked.write_text("a file where a directory should be")
    done = ended(start_two(config, folder / "faulty", environments={1: {"LMJAX_CACHE": str(blocked)}}), limit=60)
    assert [d.code for d in done] == [2, 2]
    one_line(done[1], str(blocked))
    one_line(done[0], "process 1 ended: ", str(blocked))


@pytest.mark.parametrize("process", ["0", "1"])
def test_a_process_that_waits_in_vain_says_so(folder, config, process):
    place = f"127.0.0.1:{free_port()}"
    words = ["--config", str(config), "--run", str(folder / "lonely"), "--coordinator", place]
    (done,) = ended(
        [start([*words, "--processes", "2", "--process", process, "--join-timeout", "5"], devices=4)], limit=60
    )
    assert done.code == 2
    one_line(done, f"not all processes came to {place} within 5 s")
    assert not (folder / "lonely").exists()
