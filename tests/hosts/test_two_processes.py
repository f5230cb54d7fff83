"""Two processes of four simulated devices each, on 127.0.0.1: `python -m pytest -o addopts= tests/hosts`."""

import signal
import time

import jax
import numpy as np
import pytest

from lmjax import checkpoint
from lmjax.loaded import load_run
from tests.hosts.processes import (
    STEPS,
    alone,
    ended,
    figures,
    metrics,
    one_line,
    start,
    start_two,
    wait_for_step,
)


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


def test_two_processes_compute_what_one_does(one, two):
    run, done = two
    same_losses(one, run, rel=1e-6)
    assert [line["step"] for line in metrics(run) if "loss" in line] == list(range(1, STEPS + 1))
    assert "of 2 processes" in done[0].out
    assert "mesh data 2 x fsdp 2 x tensor 2" in done[0].out
    assert done[1].out == ""
    assert [d.err for d in done] == ["", ""]


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


def test_an_adapter_by_two_processes_equals_one(folder, config, one):
    """Its base is read by both, and looked for again when the run goes on."""
    words = [f"--init_from={one}", "--adapter=LoRA", "--adapter.weights=blocks/*/kernel", "--evaluate_every=2"]
    words += ["--schedule=Constant", "--schedule.peak=1e-2"]
    done = alone(config, folder / "adapted_one", *words, "--steps=6")
    assert done.code == 0, done.err
    for steps in (4, 6):
        done = ended(start_two(config, folder / "adapted_two", *words, f"--steps={steps}"))
        assert [d.code for d in done] == [0, 0], [d.err for d in done]
    assert (folder / "adapted_two" / "base.json").read_bytes() == (folder / "adapted_one" / "base.json").read_bytes()
    same_losses(folder / "adapted_two", folder / "adapted_one", rel=1e-6)
