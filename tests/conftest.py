"""Eight simulated devices, and a cache of the session's own."""

import gc
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# the workers of pytest-xdist are children of the session and share its cache
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["LMJAX_CACHE"] = tempfile.mkdtemp(prefix="lmjax-test-cache-")

import jax
import pytest

from lmjax.compilation import room_for_simulated_devices
from tests import tiny

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {tiny.QUICK_TO_COMPILE}"
room_for_simulated_devices()
jax.config.update("jax_compilation_cache_dir", os.environ["LMJAX_CACHE"] + "/programs")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
# tracing makes millions of objects that live: looking through them after every 700 took a seventh of the time
gc.freeze()
gc.set_threshold(100_000)


def pytest_sessionfinish():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["LMJAX_CACHE"], ignore_errors=True)


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
