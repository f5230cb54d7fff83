"""Which devices have matrix products of 8 bits; the products themselves are in tests/quantized."""

import importlib.util
from types import SimpleNamespace

import pytest

from lmjax.errors import UserError
from lmjax.models import quantised
from tests import tiny

ABLE = {
    ("cpu", "cpu", ""): ("int8",),
    ("tpu", "TPU v4", ""): (),
    ("tpu", "TPU v5 lite", ""): ("int8",),
    ("tpu", "TPU v5p", ""): ("int8",),
    ("tpu", "TPU7x", ""): ("int8", "fp8"),
    ("gpu", "NVIDIA V100", "7.0"): (),
    ("gpu", "NVIDIA A100", "8.0"): ("int8",),
    ("gpu", "NVIDIA H100", "9.0"): ("int8", "fp8"),
    ("gpu", "MI300X", "gfx942"): (),
}


@pytest.mark.parametrize("device", ABLE, ids=lambda device: device[1])
def test_who_has_products_of_8_bits(device):
    platform, kind, capability = device
    described = SimpleNamespace(platform=platform, device_kind=kind, compute_capability=capability)
    able = tuple(name for name in ("int8", "fp8") if quantised.obstacle(name, described) is None)
    assert able == ABLE[device]
    assert quantised.obstacle("plain", described) is None


def test_a_device_without_such_products_is_one_line():
    device = SimpleNamespace(platform="cpu", device_kind="cpu")
    quantised.check("plain", device)
    quantised.check("int8", device)
    with pytest.raises(UserError, match="model.products=fp8: cpu has no matrix products of fp8"):
        quantised.check("fp8", device)


def test_without_the_extra_it_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    quantised.check_package("plain")
    with pytest.raises(UserError, match=r"model.products=int8 needs qwix.*\[quantized\]"):
        quantised.check_package("int8")


def test_experts_have_plain_products_only():
    with pytest.raises(ValueError, match="experts are plain only"):
        tiny.mixtral(products="int8")
