"""jax.jit with what makes this platform's programs fast, and what keeps simulated devices from waiting for ever."""

import functools
import os
import re

import jax

from lmjax.sharding import platform

# XLA's CPU backend, jaxlib 0.10: matrix products one by one by YNN, the only library there that multiplies bfloat16
# without making it float32 first; nothing else is fused into them, and the rest has the full width of AVX-512. Measured
# on 2 cores in turns, ms a step, by Eigen and so: GPT-2 124M 3,350 and 3,090, in bfloat16 3,550 and 3,230; the
# 0.8M-parameter model 32 and 32.
CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
    "xla_cpu_prefer_vector_width": "512",
}


@functools.cache
def options(platform: str) -> dict[str, str]:
    """Compiler options for programs of that platform; none where this jaxlib does not know them."""
    if platform != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=CPU_OPTIONS)(0)
    except jax.errors.JaxRuntimeError:
        return {}
    return CPU_OPTIONS


def fast_jit(function, **arguments):
    """jax.jit(function, **arguments) with `options` for the mesh in use."""
    return jax.jit(function, compiler_options=options(platform()), **arguments)


def program(function, *statics):
    """`fast_jit` of function(*statics, ...): the same one for the same function and hashable statics, so that what is
    compiled once in a process serves again."""
    return _program(function, statics, platform())


@functools.cache
def _program(function, statics: tuple, platform: str):
    return jax.jit(functools.partial(function, *statics), compiler_options=options(platform))


def room_for_simulated_devices() -> None:
    """To be called before JAX first looks for devices. XLA's simulated devices run in one pool of as many threads, and
    each that waits for the others keeps one; with the work of a late one queued behind those that wait, none goes
    on and XLA ends the process (seen on 2 and on 8 devices). With twice the threads 6,000 steps went through."""
    found = re.search(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    devices = int(found.group(1)) if found else int(os.environ.get("JAX_NUM_CPU_DEVICES", 1))
    if devices > 1:
        os.environ.setdefault("NPROC", str(max(2 * devices, os.cpu_count() or 1)))
