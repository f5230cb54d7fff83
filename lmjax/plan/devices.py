"""Devices as their makers describe them, and topologies of them by name."""

import functools
import os
import re
import time
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from lmjax.compilation import fast_jit
from lmjax.errors import UserError

GIB = 2**30
HERE = "here"


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device. kind: how the name begins that JAX gives it. memory: usable bytes. peak: dense bfloat16 FLOP/s.
    peak32: of float32 products at JAX's default precision, which is bfloat16 on TPU and TF32 on NVIDIA's. bandwidth: of
    its memory, bytes/s. link: bytes/s one way over one link to a neighbour; a torus has two links in each of its
    dimensions, a GPU has all its links in one. node: how many are joined by such links; None: all. beyond: bytes/s to
    other nodes."""

    kind: str
    memory: float
    peak: float
    bandwidth: float
    link: float
    node: int | None = None
    beyond: float | None = None
    peak32: float = 0.0

    def __post_init__(self):
        if not self.peak32:
            object.__setattr__(self, "peak32", self.peak if self.kind.startswith("TPU") else self.peak / 2)


# TPU: cloud.google.com/tpu/docs/v5e, /v5p, /v6e; memory as libtpu's compiler states it; links:
# jax-ml.github.io/scaling-book, "TPUs". GPU: NVIDIA's data sheets, dense rates, memory less 1 GiB for the driver;
# beyond a node 400 Gbit/s.
DEVICES = {
    "v5e": Device(kind="TPU v5 lite", memory=15.75 * GIB, peak=197e12, bandwidth=819e9, link=45e9),
    "v5p": Device(kind="TPU v5", memory=95.74 * GIB, peak=459e12, bandwidth=2765e9, link=90e9),
    "v6e": Device(kind="TPU v6 lite", memory=31.25 * GIB, peak=918e12, bandwidth=1638e9, link=90e9),
    "a100-40": Device(
        kind="NVIDIA A100-SXM4-40GB", memory=39 * GIB, peak=312e12, bandwidth=1555e9, link=300e9, node=8, beyond=25e9
    ),
    "a100": Device(kind="NVIDIA A100", memory=79 * GIB, peak=312e12, bandwidth=2039e9, link=300e9, node=8, beyond=25e9),
    "h100": Device(
        kind="NVIDIA H100", memory=78.6 * GIB, peak=989e12, bandwidth=3350e9, link=450e9, node=8, beyond=50e9
    ),
    "h200": Device(
        kind="NVIDIA H200", memory=139.4 * GIB, peak=989e12, bandwidth=4800e9, link=450e9, node=8, beyond=50e9
    ),
}


# the largest pods, side by side from the shortest on; libtpu aborts the process beyond them
LARGEST = {"v5e": (16, 16), "v6e": (16, 16), "v5p": (16, 20, 28)}


@dataclass(frozen=True)
class Topology:
    """So many devices of one kind. shape: the torus of a TPU pod, else the number alone. here: whether they are this
    machine's."""

    name: str
    device: Device
    shape: tuple[int, ...]
    here: bool = False

    @property
    def is_tpu(self) -> bool:
        return self.device.kind.startswith("TPU")

    @property
    def count(self) -> int:
        total = 1
        for size in self.shape:
            total *= size
        return total


def topology_of(name: str) -> Topology:
    """v5p:8x8x8, v5e:16x16, h100:8, or "here": this machine's devices. Raises UserError where there is no such device,
    or its pods have another form."""
    if name == HERE:
        return of_this_machine()
    found = re.fullmatch(r"([a-z0-9-]+):(\d+(?:x\d+)*)", name)
    if not found or found[1] not in DEVICES:
        raise UserError(
            f"--topology {name}: expected {HERE}, or KIND:SHAPE with KIND one of {', '.join(DEVICES)}, as v5p:8x8x8"
        )
    topology = Topology(name, DEVICES[found[1]], tuple(int(size) for size in found[2].split("x")))
    largest = LARGEST.get(found[1], (10**6,))
    if len(topology.shape) != len(largest):
        form = "x".join(["4"] * len(largest)) if len(largest) > 1 else "8"
        raise UserError(f"--topology {name}: expected {len(largest)} number(s), as {found[1]}:{form}")
    if not topology.count or any(a > b for a, b in zip(sorted(topology.shape), largest, strict=True)):
        raise UserError(f"--topology {name}: expected from 1 to {'x'.join(map(str, largest))} devices")
    return topology


def devices_of(topology: Topology) -> list:
    """The devices of a TPU pod for XLA's compiler, which needs none of them. Raises UserError where libtpu is missing,
    or knows no such pod."""
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(topology.name, platform="tpu").devices)
    except Exception as error:  # RuntimeError without libtpu, JaxRuntimeError from it
        reason = " ".join(str(error).split())
        if "not installed" in reason:
            reason = "compiling for TPU needs libtpu: python -m pip install -e '.[plan]'"
        elif "INVALID_ARGUMENT" in reason:
            reason = f"there is no such pod: {reason.removeprefix('INVALID_ARGUMENT: ')}"
        raise UserError(f"--topology {topology.name}: {reason}") from None


def of_this_machine() -> Topology:
    """The devices at hand, with their maker's rates and the memory that JAX has of them; where they are not in the
    table, with rates measured now."""
    devices, own = jax.devices(), jax.local_devices()
    name = name_of(devices[0].device_kind)
    if name:
        allowed = (own[0].memory_stats() or {}).get("bytes_limit")
        device = replace(DEVICES[name], memory=allowed or DEVICES[name].memory)
    else:
        device = measured(own[0], len(own))
    return Topology(f"{name or device.kind}:{len(devices)}", device, (len(devices),), here=True)


def peak_flops() -> float | None:
    """bfloat16 FLOP/s of all devices at hand together; None where the table has them not, CPUs for one."""
    name = name_of(jax.devices()[0].device_kind)
    return DEVICES[name].peak * jax.device_count() if name else None


def name_of(kind: str) -> str | None:
    """The name in the table of what JAX calls by this kind; None where it is not there."""
    found = [name for name, device in DEVICES.items() if kind.startswith(device.kind)]
    return max(found, key=lambda name: len(DEVICES[name].kind), default=None)


@functools.cache
def measured(device: jax.Device, count: int) -> Device:
    """What a device gives in a fifth of a second, once a process: products of 1024 x 1024 matrices, and copies of
    64 MiB. Simulated devices share one processor, and get its count-th part."""
    with jax.default_device(device):
        square = jnp.ones((1024, 1024), jnp.float32)
        long = jnp.ones((1 << 24,), jnp.float32)
        product = _best_seconds(fast_jit(lambda x: x @ x), square)
        copy = _best_seconds(fast_jit(lambda x: x + 1), long)
    rate, bandwidth = 2 * 1024**3 / product / count, 2 * long.nbytes / copy / count
    return Device(
        kind=device.device_kind,
        memory=_memory(device) / count,
        peak=rate,
        peak32=rate,
        bandwidth=bandwidth,
        link=bandwidth / 2,
    )


def _best_seconds(function, argument) -> float:
    function(argument).block_until_ready()
    seconds: list[float] = []
    while len(seconds) < 5 and sum(seconds) < 0.1:
        start = time.perf_counter()
        function(argument).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _memory(device: jax.Device) -> int:
    """Bytes of the device, or of the machine where that is a CPU."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
