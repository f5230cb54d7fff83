"""Runs at gs://, served over HTTP by an emulator on 127.0.0.1: `python -m pytest -o addopts= tests/remote`."""

import logging
import os
import signal
import socketserver
import time
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from gcp_storage_emulator.server import create_server

from lmjax import checkpoint
from lmjax.errors import Notice
from lmjax.loaded import load_run
from lmjax.places import place
from tests import tiny
from tests.hosts.processes import EXPERIMENT, STEPS, alone, ended, figures, free_port, metrics, start, start_two

RUNS = "gs://bucket/runs"


@pytest.fixture(scope="module", autouse=True)
def server():
    """Of gcsfs and of TensorStore, both without asking anyone else who they are."""
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    variables = {
        "STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "FSSPEC_GCS_TOKEN": "anon", "FSSPEC_GS_TOKEN": "anon", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "NO_GCE_CHECK": "true",
    }  # fmt: skip
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        # clients that close a connection early are no news
        patch.setattr(socketserver.BaseServer, "handle_error", lambda *_: None)
        fsspec.config.set_conf_env(fsspec.config.conf)
        yield
    server.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same text in a directory and in the bucket."""
    folder = tmp_path_factory.mktemp("remote")
    (folder / "text").mkdir()
    place("gs://bucket/text/readme.md").write_text("not a text")
    for seed in range(3):
        text = tiny.text(8_000, seed=seed)
        (folder / "text" / f"{seed}.txt").write_text(text)
        place(f"gs://bucket/text/{seed}.txt").write_text(text)
    (folder / "experiment.py").write_text(EXPERIMENT.format(text=str(folder / "text" / "*.txt"), steps=STEPS))
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return folder / "experiment.py"


@pytest.fixture(scope="module")
def local(folder, config):
    """The run of one process with eight devices, in a directory, never interrupted."""
    done = alone(config, folder / "local")
    assert done.code == 0, done.err
    return folder / "local"


def names(url: str) -> list[str]:
    return list(place(url).sizes())


def same_bits(a, b):
    one, other = (jax.tree.leaves(load_run(run).params) for run in (a, b))
    assert all((np.asarray(x) == np.asarray(y)).all() for x, y in zip(one, other, strict=True))


def downloaded(url: str, folder: Path) -> Path:
    place(url).download(folder, ["metrics.jsonl"])
    return folder


def test_killed_and_resumed_from_text_in_a_bucket_is_the_local_run(folder, config, local):
    url = f"{RUNS}/killed"
    words = ["--config", str(config), "--run", url, "--data.source.path=gs://bucket/text/*.txt"]
    process = start(words, devices=8)
    try:
        until = time.monotonic() + 120
        while not checkpoint.steps_on_disk(place(f"{url}/checkpoints")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert ".lock" in names(url)
    done = ended([start(words, devices=8)])[0]
    assert done.code == 0, done.err
    assert "waiting 25 s to see whether process" in done.out
    assert f"resuming {url} after step" in done.out
    assert "WARNING" not in done.out
    assert figures(downloaded(url, folder / "killed")) == figures(local)
    same_bits(local, url)
    assert ".lock" not in names(url)
    assert checkpoint.steps_on_disk(place(url) / "checkpoints") == checkpoint.steps_on_disk(local / "checkpoints")


def test_two_processes_write_one_checkpoint_and_one_reads_it(folder, config, local):
    url = f"{RUNS}/two"
    done = ended(start_two(config, url))
    assert [d.code for d in done] == [0, 0], [d.err for d in done]
    # both wrote their parts
    step = max(checkpoint.steps_on_disk(place(url) / "checkpoints"))
    parts = [name for name in names(f"{url}/checkpoints/{step}") if "ocdbt.process_" in name]
    assert {name.split("ocdbt.process_")[1].split("/")[0] for name in parts} == {"0", "1"}
    ours, theirs = metrics(downloaded(url, folder / "two")), metrics(local)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for x, y in zip(ours, theirs):
        assert x.get("loss", 0) == pytest.approx(y.get("loss", 0), rel=1e-5)
    again = ended(start_two(config, url, "--steps=14"))
    assert [d.code for d in again] == [0, 0], [d.err for d in again]
    assert f"resuming {url} after step {STEPS}" in again[0].out
    told = [
        ended([start([verb, "--model", url, *words], devices=1)])[0]
        for verb, words in (("evaluate", []), ("generate", ["--prompt", "the", "--max_new_tokens", "5"]))
    ]
    assert [d.code for d in told] == [0, 0], [d.err for d in told]
    assert f"{url} after step 14" in told[0].out
    newest = place(f"{url}/checkpoints/14")
    big = max((size, name) for name, size in newest.sizes().items())
    (newest / big[1]).write_text("x" * big[0])
    with pytest.warns(Notice, match="going back to step 12: damaged checkpoint gs://bucket/runs/two/"):
        assert load_run(url).step == STEPS


def test_what_is_missing_is_one_line(config):
    for words in (
        ["--run", "gs://no-such-bucket/run"],
        ["--run", f"{RUNS}/x", "--data.source.path=gs://nowhere/*.txt"],
    ):
        (done,) = ended([start(["--config", str(config), *words], devices=8)])
        assert done.code == 2
        assert done.err.count("\n") == 1, done.err
        assert "gs://no" in done.err
    processes = start_two(config, "memory://bucket/run")
    for done in ended(processes):
        assert done.code == 2
        assert "expected a directory that all hosts share, or gs://" in done.err
    assert os.environ["STORAGE_EMULATOR_HOST"].startswith("http://127.0.0.1")
