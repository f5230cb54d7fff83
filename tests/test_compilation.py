"""What is set before JAX looks for devices."""

import os

import pytest

from lmjax.compilation import room_for_simulated_devices


@pytest.mark.parametrize(
    ("given", "threads"),
    [
        ({}, None),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, None),
        ({"XLA_FLAGS": "--xla_a=2 --xla_force_host_platform_device_count=64 --xla_b=3"}, "128"),
        ({"JAX_NUM_CPU_DEVICES": "64"}, "128"),
        ({"JAX_NUM_CPU_DEVICES": "64", "NPROC": "70"}, "70"),
    ],
)
def test_simulated_devices_have_two_threads_each(monkeypatch, given, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    room_for_simulated_devices()
    assert os.environ.get("NPROC") == threads
