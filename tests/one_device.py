"""Runs on one device, for tests of what no mesh changes: on eight simulated ones every program takes several times as
long to compile and to run. What eight devices do to a run, tests/train and the tests of meshes say."""

from contextlib import contextmanager

import jax
import pytest


@contextmanager
def on_one_device():
    """To lmjax, this machine has one device."""
    first = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *backend: first)
        yield


@pytest.fixture
def one_device():
    with on_one_device():
        yield
