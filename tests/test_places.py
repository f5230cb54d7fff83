"""Text, runs and models at URLs: what lies at memory:// is what lies in a directory."""

import gzip
import json
import signal
from dataclasses import replace

import fsspec
import jax
import numpy as np
import pytest

from lmjax import checkpoint, commands
from lmjax.checkpoint import Checkpoints
from lmjax.data.sources import JsonLines, TextFiles
from lmjax.data.store import fingerprint
from lmjax.errors import UserError
from lmjax.lease import Lease
from lmjax.loaded import load_model, load_run
from lmjax.places import Remote, place
from lmjax.run_directory import RunDirectory
from lmjax.tokenizers import Bytes
from lmjax.train import loop, start
from lmjax.train.report import Report
from tests import tiny
from tests.test_checkpoint import PARAMS, REST, abstract

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def bucket():
    """A URL with nothing below."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    return "memory://bucket"


def upload(folder, url):
    for file in folder.rglob("*"):
        if file.is_file():
            fsspec.filesystem("memory").pipe(f"{url}/{file.relative_to(folder)}", file.read_bytes())


@pytest.fixture
def texts(tmp_path):
    """Files in folders, one zipped, one hidden, names that sort differently with and without their folders."""
    root = tmp_path / "texts"
    for name in ("a/one.txt", "a.b/two.txt", "a/deep/three.txt", "four.txt", ".hidden.txt", "a/.hidden/five.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(tiny.text(300, seed=len(name)) + name)
    (root / "a" / "six.txt.gz").write_bytes(gzip.compress(b"zipped"))
    (root / "lines.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    return root


@pytest.mark.parametrize("pattern", ["*.txt", "**/*.txt", "a/*", "a*/*.txt", "*/*.gz", "a/.hidden/*", "four.txt"])
def test_the_same_files_at_a_url_are_the_same_text(texts, bucket, pattern):
    upload(texts, bucket)
    here, there = (TextFiles(path=f"{root}/{pattern}") for root in (texts, bucket))
    assert list(here.documents()) == list(there.documents())
    tokenizer = Bytes().build(lambda: [])
    assert fingerprint(here, tokenizer) == fingerprint(there, tokenizer)


def test_lines_several_patterns_and_file_urls(texts, bucket):
    upload(texts, bucket)
    here = JsonLines(path=str(texts / "lines.jsonl"))
    assert list(here.documents()) == list(JsonLines(path=f"{bucket}/lines.jsonl").documents())
    patterns = ("a/*.txt", "four.txt")
    several = [TextFiles(path=tuple(f"{root}/{p}" for p in patterns)) for root in (texts, bucket, f"file://{texts}")]
    names = [[d.name for d in source.documents()] for source in several]
    assert names[0] == names[1] == names[2] == ["a/one.txt", "four.txt"]
    mixed = TextFiles(path=(str(texts / "four.txt"), f"{bucket}/a/one.txt"))
    assert len(list(mixed.documents())) == 2


def test_what_is_not_there_or_cannot_be_read_is_named(bucket):
    for path in (f"{bucket}/*.txt", f"{bucket}/none.txt", "memory://no-such-bucket/x"):
        with pytest.raises(UserError, match="data.source.path: memory://.*: no such file"):
            TextFiles(path=path).check()
    fsspec.filesystem("memory").pipe(f"{bucket}/x.txt.gz", b"not zipped")
    with pytest.raises(UserError, match="memory://bucket/x.txt.gz: cannot be read: Not a gzipped file"):
        list(TextFiles(path=f"{bucket}/x.txt.gz").documents())
    with pytest.raises(UserError, match="nosuch://x: Protocol not known: nosuch"):
        place("nosuch://x")


def test_a_missing_package_is_named(monkeypatch):
    def missing(url):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match=r"gs://b/x: Please install gcsfs .* \(python -m pip install -e '\.\[gcs\]'\)"):
        place("gs://b/x")


def test_an_error_of_a_library_is_one_line_and_never_taken_for_absence(bucket, monkeypatch):
    def refused(*_, **__):
        raise RuntimeError("401:\nno rights")

    file = place(f"{bucket}/run/experiment.json")
    assert not file.is_file()
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", refused)
    with pytest.raises(UserError, match="memory://bucket/run/experiment.json: 401: no rights"):
        file.is_file()


def test_names(bucket):
    folder = place("memory://bucket/a/")
    assert isinstance(folder, Remote)
    assert str(folder / "b.txt.gz") == "memory://bucket/a/b.txt.gz"
    assert (folder / "b.txt.gz").suffixes == [".txt", ".gz"]
    assert place(folder) is folder
    (folder / "x" / "y").write_text("1")
    assert [str(child) for child in folder.iterdir()] == ["memory://bucket/a/x"]
    assert folder.sizes() == {"x/y": 1}
    assert folder.is_dir() and not (folder / "z").exists()


@pytest.fixture(autouse=True)
def quick_leases(monkeypatch):
    for name, seconds in {"BEAT": 0.02, "SILENCE": 0.3, "SETTLE": 0.01}.items():
        monkeypatch.setattr(Lease, name, seconds)


def stop_at(monkeypatch, when):
    """SIGTERM as soon as that step is sent off."""
    report_step = Report.step

    def step(self, number, *rest):
        report_step(self, number, *rest)
        if number == when and not self.done:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Report, "step", step)


def figures(text):
    return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"} for line in text.splitlines()]


def assert_same_run(local, url):
    store = {name: place(url) / name for name in ("metrics.jsonl", "samples.txt", "held_out.jsonl", "experiment.json")}
    assert figures((local / "metrics.jsonl").read_text()) == figures(store.pop("metrics.jsonl").read_text())
    for name, file in store.items():
        assert (local / name).read_text() == file.read_text(), name
    assert checkpoint.steps_on_disk(local / "checkpoints") == checkpoint.steps_on_disk(place(url) / "checkpoints")
    a, b = (load_run(run).params for run in (local, url))
    assert all((np.asarray(x) == np.asarray(y)).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_a_run_at_a_url_interrupted_damaged_and_resumed_is_the_local_run(
    bucket, text_file, tmp_path, monkeypatch, capsys
):
    exp = tiny.experiment(text_file)
    loop.train(exp, tmp_path / "run")
    url = f"{bucket}/runs/a"
    stop_at(monkeypatch, 13)
    with pytest.raises(loop.Stopped):
        loop.train(exp, place(url))
    assert checkpoint.steps_on_disk(place(url) / "checkpoints")[-1] == 13
    assert figures((place(url) / "metrics.jsonl").read_text())[-1]["step"] == 13
    big = max(((size, name) for name, size in place(f"{url}/checkpoints/13").sizes().items()))[1]
    damaged = place(f"{url}/checkpoints/13/{big}")
    damaged.write_text("x" * damaged.stat().st_size)
    # what a killed process leaves: newer, and no checkpoint
    place(f"{url}/checkpoints/19/params/some").write_text("half")
    capsys.readouterr()
    loop.train(exp, place(url))
    said = capsys.readouterr().out
    assert "WARNING: going back to step 10: damaged checkpoint" in said
    assert said.count("WARNING") == 1
    assert_same_run(tmp_path / "run", url)
    assert any(name.startswith("tensorboard/events") for name in place(url).sizes())
    assert not (place(url) / ".lock").exists()
    loop.train(exp, place(url))
    assert f"finished: step 20 of 20 in {url}" in capsys.readouterr().out


def run(verb, *words):
    import run as command_line

    options = command_line.parser_for(verb).parse_args(list(words))
    return commands.run(verb, options, [])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A local run of two steps."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(tiny.text(6_000))
    exp = tiny.experiment(folder / "text.txt", steps=2, sample_every=2, evaluate_every=2)
    loop.train(exp, folder / "run")
    return folder / "run"


@pytest.fixture
def url(trained, bucket):
    """The same at a URL."""
    upload(trained, f"{bucket}/run")
    return f"{bucket}/run"


def test_the_other_verbs_read_a_run_at_a_url(trained, url, bucket, capsys):
    outputs = []
    for model in (str(trained), url):
        capsys.readouterr()
        assert run("evaluate", "--model", model) == 0
        assert run("generate", "--model", model, "--prompt", "the ", "--max_new_tokens", "5") == 0
        outputs.append(capsys.readouterr().out.replace(model, "MODEL"))
    assert outputs[0] == outputs[1]
    assert run("evaluate", "--model", url, "--text", f"{url}/samples.txt") == 0
    assert run("verify", "--model", url, "--against", str(trained)) == 0
    for words, message in (
        (["--model", f"{bucket}/none"], "neither a run nor"),
        (["--model", "nosuch://x"], "Protocol not known"),
        (["--model", url, "--json", f"{bucket}/result.json"], "expected a path of this machine"),
    ):
        capsys.readouterr()
        assert run("evaluate", *words) == 2
        assert message in capsys.readouterr().err


def test_training_starts_from_a_run_at_a_url(trained, url):
    exp = replace(RunDirectory(trained).experiment(), init_from=url)
    assert start.fitting(exp, RunDirectory(trained).tokenizer()).model == exp.model


def test_a_hugging_face_directory_at_a_url_is_copied(trained, bucket, tmp_path):
    assert run("export", "--model", str(trained), "--to", str(tmp_path / "hf")) == 0
    upload(tmp_path / "hf", f"{bucket}/hf")
    here, there = load_model(tmp_path / "hf"), load_model(f"{bucket}/hf")
    assert there.path.name == "hf"
    assert all(
        (np.asarray(x) == np.asarray(y)).all() for x, y in zip(*map(jax.tree.leaves, (here.params, there.params)))
    )


def test_a_run_in_use_is_refused_and_one_whose_holder_died_is_taken_over(url, text_file, capsys):
    with RunDirectory(url) as first:
        first.lock()
        with pytest.raises(UserError, match="memory://bucket/run: in use by process .* on .*; --run names another"):
            loop.train(tiny.experiment(text_file), place(url))
    lock = place(url) / ".lock"
    assert not lock.exists()
    lock.write_text('{"holder": "process 1 on gone", "nonce": "a", "count": 3}')
    with RunDirectory(url) as next_one:
        next_one.lock()
        assert "process 1 on" not in lock.read_text()
    assert "waiting 0.3 s to see whether process 1 on gone still runs" in capsys.readouterr().out
    assert not lock.exists()


def test_who_slept_while_another_took_the_run_writes_nothing_more(url):
    run, lock = RunDirectory(url), place(url) / ".lock"
    run.lock()
    run.experiment()
    lock.write_text('{"holder": "process 7", "nonce": "a", "count": 3}')
    run.write_json("environment.json", {"mine": 1})
    with pytest.raises(UserError, match="in use by process 7"):
        run.upload()
    with pytest.raises(UserError, match="in use by process 7"), run:
        pass
    assert "mine" not in (place(url) / "environment.json").read_text()
    assert "process 7" in lock.read_text()


def test_a_checkpoint_counts_when_all_else_is_there(bucket):
    """Before its manifest come its files and what else is to be uploaded; the manifest goes first when it is deleted."""
    directory, seen = place(f"{bucket}/c"), []
    with Checkpoints(directory, 2, lambda: seen.append(checkpoint.steps_on_disk(directory))) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, jax.tree.map(lambda x, s=step: x + s, PARAMS), REST, None)
    assert seen == [[], [1], [1, 2]]
    assert checkpoint.steps_on_disk(directory) == [2, 3]
    assert not (directory / "1").exists()
    manifest = checkpoint.newest_good(directory, print)
    params, _ = checkpoint.restore(directory, manifest, abstract(PARAMS), abstract(REST))
    assert (np.asarray(params["a"]["kernel"]) == np.asarray(PARAMS["a"]["kernel"]) + 3).all()
    # what a kill leaves is passed over in silence, and removed; what is damaged is told
    (directory / "3" / "manifest.json").unlink()
    assert checkpoint.newest_good(directory, pytest.fail).step == 2
    checkpoint.remove_leftovers(directory)
    assert [entry.name for entry in directory.iterdir()] == ["2"]
    (directory / "2" / min(manifest.files)).unlink()
    with pytest.raises(UserError, match="no good checkpoint is left; the newest: .*: missing"):
        checkpoint.newest_good(directory, print)


def test_where_a_run_cannot_begin(bucket, text_file):
    exp = tiny.experiment(text_file)
    with pytest.raises(UserError, match=r"a run's path cannot hold \*"):
        loop.train(exp, place(f"{bucket}/a*"))
    place(f"{bucket}/file").write_text("x")
    with pytest.raises(UserError, match="--run memory://bucket/file: expected a directory"):
        loop.train(exp, place(f"{bucket}/file"))
    with pytest.raises(UserError, match="--run memory://bucket: not empty, and not a run directory"):
        loop.train(exp, place(bucket))


def test_a_folder_that_comes_and_goes_with_another_process_s_mark_is_no_file(url, monkeypatch):
    """The mark is there for every other question, as it may be for one process while another writes and removes it."""
    look, asked = Remote._info, []

    def flickering(self):
        if str(self) != url:
            return look(self)
        asked.append(self)
        return {"type": "directory", "size": 0} if len(asked) % 2 else None

    monkeypatch.setattr(Remote, "_info", flickering)
    run = RunDirectory(url)
    for _ in range(2):
        asked.append("one question later")
        run.check_place()
    assert len(asked) > 2


def test_directories_of_killed_processes_are_removed(tmp_path, monkeypatch):
    import subprocess
    import sys

    from lmjax.cache import directory_of_this_process

    monkeypatch.setenv("LMJAX_CACHE", str(tmp_path))
    code = "import os; from lmjax.cache import directory_of_this_process as d; (d() / 'x').touch(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT)
    assert len(list(tmp_path.glob("mirrors/*/x"))) == 1
    mine = directory_of_this_process()
    directory_of_this_process()
    assert not list(tmp_path.glob("mirrors/*/x"))
    assert mine.is_dir()
