"""What is checked of the devices, and what the line 'in force' says of memory and precision."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.sharding import Mesh, build_mesh
from lmjax.train.prepare import savings
from lmjax.train.step import check_host_memory
from tests import tiny


def test_the_line_names_what_saves_memory_or_time_and_nothing_else():
    exp = tiny.experiment("unused", model=tiny.gpt2(), microbatches=1)
    one = build_mesh(Mesh(), jax.devices()[:1])
    assert savings(exp, one) == []
    large = tiny.gpt2(vocab=128_256, context=8192, remat="offload", products="int8")
    exp = replace(exp, model=large, optimizer_memory="host")
    rest = ["int8 products in the blocks", "remat offload", "optimizer state on the host"]
    assert savings(exp, one) == ["loss by chunks of 32 places", *rest]
    assert savings(exp, build_mesh(Mesh(data=8))) == ["loss by chunks of 256 places", *rest]


@pytest.mark.parametrize("change", ["optimizer_memory", "remat"])
def test_devices_without_pinned_host_memory_are_one_line(change):
    def mesh(*kinds):
        memories = lambda: [SimpleNamespace(kind=kind) for kind in kinds]
        return SimpleNamespace(devices=np.array([SimpleNamespace(device_kind="abacus", addressable_memories=memories)]))

    exp = tiny.experiment("unused", model=tiny.gpt2())
    asking = {
        "optimizer_memory": replace(exp, optimizer_memory="host"),
        "remat": replace(exp, model=tiny.gpt2(remat="offload")),
    }[change]
    check_host_memory(exp, mesh("device"))
    check_host_memory(asking, mesh("device", "pinned_host"))
    with pytest.raises(UserError, match=f"{change}=.*: XLA has no pinned host memory on abacus"):
        check_host_memory(asking, mesh("device"))
