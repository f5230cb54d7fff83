"""Eight simulated devices, and a cache of the session's own."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["LMJAX_CACHE"] = tempfile.mkdtemp(prefix="lmjax-test-cache-")

import shutil

import jax
import pytest

# the tests compile many tiny programs, some of them in several processes
jax.config.update("jax_compilation_cache_dir", os.environ["LMJAX_CACHE"] + "/programs")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pytest_sessionfinish():
    shutil.rmtree(os.environ["LMJAX_CACHE"], ignore_errors=True)


@pytest.fixture
def text_file(tmp_path):
    """About 20,000 characters of plain text in three documents' worth of lines."""
    from tests import tiny

    file = tmp_path / "text.txt"
    file.write_text(tiny.text(20_000), encoding="utf-8")
    return file
