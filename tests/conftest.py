"""Eight simulated devices, and a cache of the session's own."""

import gc
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# the tests compile many tiny programs once: what only makes programs faster would make the tests slower
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1"
)
# the workers of pytest-xdist are children of the session and share its cache
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["LMJAX_CACHE"] = tempfile.mkdtemp(prefix="lmjax-test-cache-")

import jax
import pytest

from lmjax.compilation import room_for_simulated_devices

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
    from tests import tiny

    file = tmp_path / "text.txt"
    file.write_text(tiny.text(20_000), encoding="utf-8")
    return file
