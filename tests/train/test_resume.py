"""Interrupted runs equal uninterrupted ones, bit for bit: dropout, accumulation, warm-up and mixtures on."""

import json
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from lmjax import checkpoint, optim
from lmjax.data.mixture import Mixture, Weighted
from lmjax.data.sources import TextFiles
from lmjax.errors import UserError
from lmjax.experiment import DataConfig
from lmjax.loaded import load_run
from lmjax.models.config import ModelConfig
from lmjax.optim import AdamW, Muon
from lmjax.sharding import Mesh, build_mesh
from lmjax.tokenizers import Bytes
from lmjax.train import loop
from lmjax.train import state as train_state
from lmjax.train.report import Report
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_device")


def experiment(path, tmp_path, **changes):
    other = tmp_path / "other.txt"
    other.write_text(tiny.text(6000, seed=9))
    source = Mixture(
        parts=(Weighted(source=TextFiles(path=str(path)), weight=2.0), Weighted(source=TextFiles(path=str(other))))
    )
    base = tiny.experiment(path, data=DataConfig(source=source, documents="apart"))
    return replace(base, **changes)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """An experiment, and the run of it that nothing interrupted."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "text.txt").write_text(tiny.text(20_000))
    exp = experiment(folder / "text.txt", folder, optimizer=AdamW(b2=0.95))
    return exp, run(exp, folder / "straight")


@pytest.fixture
def copied(begun, tmp_path):
    """The experiment, and a copy of that run."""
    exp, straight = begun
    shutil.copytree(straight, tmp_path / "run")
    return exp, tmp_path / "run"


def stop_at(monkeypatch, *steps):
    """SIGTERM to this process as soon as these steps are sent off, each once."""
    waiting, report_step = list(steps), Report.step

    def step(self, number, *rest):
        report_step(self, number, *rest)
        if waiting and number == waiting[0]:
            waiting.pop(0)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Report, "step", step)


def run(exp, directory, stops=(), monkeypatch=None):
    """Train to the end, as often interrupted as there are stops."""
    if stops:
        stop_at(monkeypatch, *stops)
    for step in stops:
        with pytest.raises(loop.Stopped) as stopped:
            loop.train(exp, directory)
        assert stopped.value.code == 143
        assert checkpoint.steps_on_disk(directory / "checkpoints")[-1] == step
    loop.train(exp, directory)
    return directory


def metrics(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def losses(directory):
    return [(m["step"], m["loss"], m["grad_norm"], m["learning_rate"]) for m in metrics(directory) if "loss" in m]


def arrays(directory):
    """Every array of the last checkpoint: parameters, moments and step."""
    exp = load_run(directory).experiment
    manifest = checkpoint.newest_good(directory / "checkpoints", print)
    optimizer = optim.transform(exp.optimizer, exp.schedule, exp.steps)
    restore = partial(checkpoint.restore, directory / "checkpoints", manifest)
    both = train_state.restored(exp, optimizer, build_mesh(Mesh(), jax.devices()[:1]), restore)
    return [np.asarray(x) for x in jax.tree.leaves(both)]


def assert_same_run(a, b):
    assert losses(a) == losses(b)
    evaluations = [[m for m in metrics(d) if "eval_loss" in m] for d in (a, b)]
    assert evaluations[0] == evaluations[1]
    assert all((x == y).all() for x, y in zip(arrays(a), arrays(b), strict=True))
    assert (a / "samples.txt").read_text() == (b / "samples.txt").read_text()


def test_interrupted_twice_equals_uninterrupted(begun, tmp_path, monkeypatch):
    exp, straight = begun
    assert [m[0] for m in losses(straight)] == list(range(1, 21))
    assert_same_run(straight, run(exp, tmp_path / "stopped", [5, 10], monkeypatch))


def test_interrupted_between_checkpoints_equals_uninterrupted_with_muon(text_file, tmp_path, monkeypatch):
    """Before the first of them, and of the evaluations, too."""
    exp = experiment(text_file, tmp_path, optimizer=Muon())
    assert_same_run(run(exp, tmp_path / "straight"), run(exp, tmp_path / "stopped", [3, 13], monkeypatch))


def test_optimizer_state_on_the_host_resumes_with_the_same_bits(begun, tmp_path, monkeypatch):
    exp, straight = begun
    assert_same_run(straight, run(replace(exp, optimizer_memory="host"), tmp_path / "host", [10], monkeypatch))


def test_evaluating_and_saving_change_nothing(begun, tmp_path):
    exp, seldom = begun
    often = run(replace(exp, evaluate_every=1, checkpoint_every=2, sample_every=3), tmp_path / "often")
    assert losses(often) == losses(seldom)
    assert all((x == y).all() for x, y in zip(arrays(often), arrays(seldom), strict=True))


def test_resumes_on_another_mesh(text_file, tmp_path, monkeypatch):
    """Saved by 8 fsdp devices, continued by 2 x 2 x 2: the state bitwise, the losses within 1e-5."""
    model = ModelConfig(layers=2, width=16, heads=2, context=16, dropout=0.1)
    exp = experiment(text_file, tmp_path, model=model, microbatches=1, batch_size=8, mesh=Mesh(data=1, fsdp=8))
    straight = run(exp, tmp_path / "straight")
    directory = tmp_path / "mixed"
    stop_at(monkeypatch, 10)
    with pytest.raises(loop.Stopped):
        loop.train(exp, directory)
    loop.train(replace(exp, mesh=Mesh(data=2, fsdp=2, tensor=2)), directory, accept_changes=True)
    ours, theirs = (np.array([m[1] for m in losses(d)]) for d in (directory, straight))
    assert (ours[:10] == theirs[:10]).all()
    np.testing.assert_allclose(ours[10], theirs[10], rtol=1e-5)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_a_finished_run_says_so_and_more_steps_go_on(copied, capsys):
    exp, directory = copied
    before = (directory / "metrics.jsonl").read_text()
    capsys.readouterr()
    loop.train(exp, directory)
    assert "finished: step 20 of 20" in capsys.readouterr().out
    assert (directory / "metrics.jsonl").read_text() == before
    loop.train(replace(exp, steps=30), directory)
    assert "changed since the run began: steps: 20 -> 30" in capsys.readouterr().out
    assert [m[0] for m in losses(directory)] == list(range(1, 31))
    with pytest.raises(UserError, match="steps: 30 -> 25"):
        loop.train(replace(exp, steps=25), directory)


def test_another_experiment_or_another_text_is_refused_with_the_difference(copied):
    exp, directory = copied
    kept = {f: f.read_bytes() for f in directory.rglob("*") if f.is_file() and f.name != ".lock"}
    with pytest.raises(UserError, match=r"holds a run of another experiment: optimizer.b2: 0.95 -> 0.9 \(--run DIR"):
        loop.train(replace(exp, optimizer=AdamW(b2=0.9)), directory)
    text = Path(exp.data.source.parts[0].source.path)
    before = text.read_text()
    text.write_text(before + " more")
    try:
        with pytest.raises(UserError, match="the text behind data.source changed"):
            loop.train(exp, directory)
    finally:
        text.write_text(before)
    assert kept == {f: f.read_bytes() for f in directory.rglob("*") if f.is_file() and f.name != ".lock"}


def test_a_run_killed_while_it_began_begins_again(text_file, tmp_path, monkeypatch):
    """kill -9 between the first file of a run directory and its experiment.json."""
    exp = experiment(text_file, tmp_path, steps=2, sample_every=2)

    def killed(*_):
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(loop.RunDirectory, "write_experiment", killed)
        with pytest.raises(SystemExit):
            loop.train(exp, tmp_path / "run")
    assert (tmp_path / "run" / "tokenizer").is_dir()
    assert not (tmp_path / "run" / "experiment.json").exists()
    loop.train(exp, tmp_path / "run")
    assert [m[0] for m in losses(tmp_path / "run")] == [1, 2]


def test_a_run_killed_while_its_first_checkpoint_was_hashed_goes_on(text_file, tmp_path, monkeypatch):
    """Orbax had committed, the manifest was not yet there."""
    exp = experiment(text_file, tmp_path, steps=2, sample_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_whole", lambda *_: (_ for _ in ()).throw(RuntimeError("killed here")))
        with pytest.raises(RuntimeError, match="killed here"):
            loop.train(exp, tmp_path / "run")
    assert [f.name for f in (tmp_path / "run" / "checkpoints").iterdir()] == ["2.new"]
    loop.train(exp, tmp_path / "run")
    assert checkpoint.steps_on_disk(tmp_path / "run" / "checkpoints") == [2]


def test_the_tokenizer_of_a_run_cannot_change(copied):
    exp, directory = copied
    with pytest.raises(UserError, match="the tokenizer of a run cannot change"):
        loop.train(replace(exp, tokenizer=Bytes(eos=True)), directory, accept_changes=True)


def test_accepted_text_is_what_evaluate_scores(text_file, tmp_path):
    exp = tiny.experiment(text_file, steps=2, sample_every=2)
    loop.train(exp, tmp_path / "run")
    text_file.write_text(text_file.read_text() + "another end" * 200)
    loop.train(replace(exp, steps=4), tmp_path / "run", accept_changes=True)
    assert "another end" in (tmp_path / "run" / "held_out.jsonl").read_text()


def test_two_starts_of_a_new_run_do_not_share_it(text_file, tmp_path):
    """The second began before the first had made the directory."""
    exp = experiment(text_file, tmp_path, steps=2, sample_every=2)
    with loop.RunDirectory(tmp_path / "run") as first:
        first.lock()
        with loop.RunDirectory(tmp_path / "run") as second:
            prepared = loop.prepare(exp, None)
            with pytest.raises(UserError, match="in use by process"):
                loop.open_run(second, prepared, False)


def test_a_loss_that_is_not_finite_stops_before_the_state_is_saved(text_file, tmp_path):
    exp = experiment(text_file, tmp_path, optimizer=AdamW(clip=None), checkpoint_every=1, evaluate_every=20)
    exp = replace(exp, schedule=replace(exp.schedule, peak=1e30, warmup=0.0, floor=0.0))
    with pytest.raises(UserError, match=r"step 2: loss .*stopped before the state was saved\. The batch of step 2 has"):
        loop.train(exp, tmp_path / "run")
    assert checkpoint.steps_on_disk(tmp_path / "run" / "checkpoints") == [1]


def test_a_damaged_checkpoint_is_passed_over_loudly_and_the_run_is_the_same(begun, tmp_path, capsys, monkeypatch):
    exp, straight = begun
    stop_at(monkeypatch, 12)
    with pytest.raises(loop.Stopped):
        loop.train(exp, tmp_path / "run")
    big = max(
        (tmp_path / "run" / "checkpoints" / "12").rglob("*"), key=lambda f: f.stat().st_size if f.is_file() else 0
    )
    content = bytearray(big.read_bytes())
    content[len(content) // 2] ^= 1
    big.write_bytes(content)
    capsys.readouterr()
    loop.train(exp, tmp_path / "run")
    assert "WARNING: going back to step 10: damaged checkpoint" in capsys.readouterr().out
    assert_same_run(straight, tmp_path / "run")
