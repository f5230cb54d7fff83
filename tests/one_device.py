"""Runs on one device, for tests of what no mesh changes: on eight simulated ones every program takes several times as
long to compile and to run. What eight devices do to a run, tests/train and the tests of meshes say."""

from contextlib import contextmanager

import jax
import pytest

from lmjax import evaluating
from lmjax.evaluate import suites
from lmjax.sharding import Mesh, build_mesh
from lmjax.train import prepare


def _built(config, devices=None):
    return build_mesh(config, jax.devices()[:1] if config == Mesh() else devices)


@contextmanager
def on_one_device():
    """Runs and evaluations take one device unless their mesh asks for more."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (prepare, evaluating, suites):
            patch.setattr(module, "build_mesh", _built)
        yield
