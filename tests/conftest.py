"""Eight simulated devices, and a cache of the session's own."""

import functools
import gc
import os
import shutil
import tempfile
from dataclasses import fields

os.environ["JAX_PLATFORMS"] = "cpu"
# the workers of pytest-xdist are children of the session and share its cache
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["LMJAX_CACHE"] = tempfile.mkdtemp(prefix="lmjax-test-cache-")

import jax
import pytest

from lmjax.compilation import room_for_simulated_devices
from lmjax.experiment import Experiment
from lmjax.plan import planning
from lmjax.train import state as train_state
from tests import tiny
from tests.one_device import on_one_device

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {tiny.QUICK_TO_COMPILE}"
room_for_simulated_devices()
jax.config.update("jax_compilation_cache_dir", os.environ["LMJAX_CACHE"] + "/programs")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
# where an operation was written is looked for at every one of them
jax.config.update("jax_traceback_in_locations_limit", 0)
# tracing makes millions of objects that live: looking through them after every 700 took a seventh of the time
gc.freeze()
gc.set_threshold(100_000)


def once_a_process(compile_for):
    """What is compiled for an experiment serves another whose step is the same: runs are begun, stopped and gone on
    with many times here, and in a process of its own each would find its program in the cache."""
    unseen = {
        "name",
        "data",
        "tokenizer",
        "sampling",
        "score_records",
        "evaluate_every",
        "checkpoint_every",
        "sample_every",
        "keep_checkpoints",
        "init_from",
    }
    seen = [field.name for field in fields(Experiment) if field.name not in unseen]
    held = {}

    @functools.wraps(compile_for)
    def compiled(experiment, mesh):
        data = experiment.segmented, experiment.length, experiment.source_length
        key = mesh, *data, *(getattr(experiment, name) for name in seen)
        if key not in held:
            held[key] = compile_for(experiment, mesh)
        return held[key]

    return compiled


planning.compile_train_step = once_a_process(planning.compile_train_step)
train_state.compile_fresh = once_a_process(train_state.compile_fresh)


def pytest_sessionfinish():
    # pytest and Python look through all objects several times at the end
    gc.freeze()
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["LMJAX_CACHE"], ignore_errors=True)


@pytest.fixture(scope="module")
def one_device():
    """All tests of a module."""
    with on_one_device():
        yield


@pytest.fixture
def one_device_here():
    """One test."""
    with on_one_device():
        yield


@pytest.fixture
def text_file(tmp_path):
    """About 20,000 characters of plain text in three documents' worth of lines."""
    file = tmp_path / "text.txt"
    file.write_text(tiny.text(20_000), encoding="utf-8")
    return file


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a text and an experiment of it; runs go to ./runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(tiny.text(20_000))
    (tmp_path / "e.py").write_text(tiny.EXPERIMENT.format(text=str(tmp_path / "text.txt")))
    return tmp_path
