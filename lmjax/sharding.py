"""The mesh, and the one table that says which logical axis lies on which mesh axis.

Weights name their axes where they are born; activations name theirs in `constrain`. Whoever
changes how a model is split changes `RULES` and nothing else. Names map from left to right and a
mesh axis is used once per array: in an activation (batch, length, embed) the batch takes "fsdp", so
embed stays whole; in a weight (embed, mlp) nothing else wants "fsdp", so embed takes it.
"""

import math
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeParamShapeError
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from lmjax.errors import UserError

RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "length": ("sequence",),
    "stream": ("sequence", "tensor"),
    "positions": (),
    "layers": (),
    "embed": ("fsdp", "sequence"),
    "vocab": ("tensor",),
    "mlp": ("tensor",),
    "experts": ("expert",),
    "capacity": ("data", "fsdp", "sequence"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
}


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How many devices lie along each axis; at most one axis takes "rest", all that remain.

    data: replicas of the model, each with its part of the batch. fsdp: the same, with weights and
    optimizer state split among them (ZeRO-3, arXiv:1910.02054). sequence: each row's places split, weights as by
    fsdp; attention gathers the keys (arXiv:2404.10719, section 2). tensor: heads, feed-forward width and
    vocabulary split (Megatron-LM, arXiv:1909.08053), and between them the places of the residual stream
    (arXiv:2205.05198, section 4.2.2). expert: the experts of a mixture split, and the batch.
    """

    data: int | Literal["rest"] = "rest"
    fsdp: int | Literal["rest"] = 1
    sequence: int | Literal["rest"] = 1
    tensor: int | Literal["rest"] = 1
    expert: int | Literal["rest"] = 1

    def __post_init__(self):
        for name, size in self.sizes.items():
            if size != "rest" and size < 1:
                raise ValueError(f"mesh.{name} is {size}; expected a positive number or rest")
        if list(self.sizes.values()).count("rest") > 1:
            raise ValueError("only one axis of the mesh can take the rest of the devices")

    @property
    def sizes(self) -> dict[str, int | str]:
        return {name: getattr(self, name) for name in ("data", "fsdp", "sequence", "tensor", "expert")}

    def resolve(self, devices: int) -> dict[str, int]:
        """Axis sizes on that many devices. Raises UserError where they do not multiply to it."""
        fixed = math.prod(size for size in self.sizes.values() if size != "rest")
        asked = " x ".join(f"{name} {size}" for name, size in self.sizes.items() if size != 1) or "data 1"
        if devices % fixed or ("rest" not in self.sizes.values() and fixed != devices):
            raise UserError(f"mesh: {asked} does not fit {devices} device(s)")
        return {name: devices // fixed if size == "rest" else size for name, size in self.sizes.items()}


def build_mesh(config: Mesh, devices=None) -> jax.sharding.Mesh:
    """The device mesh. Axes are Auto: the compiler propagates shardings from weights and `constrain`."""
    devices = jax.devices() if devices is None else devices
    sizes = config.resolve(len(devices))
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=np.array(devices)
    )


def partition(names, shape, sizes: dict[str, int], *, strict: bool = True) -> PartitionSpec:
    """PartitionSpec of an array whose axes have these logical names (None: never split).

    A vocabulary that its mesh axis does not divide stays whole (GPT-2 has 50,257 entries); any other size must divide,
    or where not strict stays whole too. Raises ValueError for a name that is not in RULES, UserError for a size that
    does not divide.
    """
    used, spec = set(), []
    for name, size in zip(names, shape, strict=True):
        if name is not None and name not in RULES:
            raise ValueError(f"logical axis {name!r} is not in sharding.RULES: {', '.join(RULES)}")
        axes = tuple(a for a in (RULES[name] if name else ()) if a in sizes and a not in used)
        ways = math.prod(sizes[a] for a in axes)
        if size % ways and (name == "vocab" or not strict):
            axes = ()
        elif size % ways:
            nearest = " or ".join(map(str, near_divisors(size, ways)))
            raise UserError(
                f"mesh: {name} of size {size} cannot be split {ways} ways ({' x '.join(axes)}); {nearest} ways would do"
            )
        used.update(axes)
        spec.append(axes or None)
    return PartitionSpec(*spec)


def placement(mesh: jax.sharding.Mesh | None, names, shape) -> jax.sharding.Sharding:
    """Where an array whose axes have these logical names lies; without a mesh, on this process's first device.
    Raises as `partition`."""
    if mesh is None:
        return SingleDeviceSharding(jax.local_devices()[0])
    return NamedSharding(mesh, partition(names, shape, dict(mesh.shape)))


def share(names, shape, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape of one device's part of an activation with these logical names; what does not divide stays whole."""
    mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
    return NamedSharding(mesh, partition(names, shape, sizes, strict=False)).shard_shape(tuple(shape))


def near_divisors(size: int, ways: int) -> list[int]:
    """The divisors of size that lie next to `ways`, below and above it."""
    divisors = [n for n in range(1, size + 1) if size % n == 0]
    below, above = [n for n in divisors if n < ways][-1:], [n for n in divisors if n > ways][:1]
    return below + above


class Named(nn.Partitioned):
    """A weight with its axes' logical names. Flax's own box takes these for mesh axes when it is opened."""

    def unbox(self, apply_constraint=True):
        return self.value


def weight(module: nn.Module, name: str, init, names: tuple[str | None, ...], shape: tuple[int, ...]) -> jax.Array:
    """A float32 weight of the module whose axes have these logical names; `init` makes it where it is not there yet.
    Raises flax.errors.ScopeParamShapeError where it is there in another shape."""
    if module.is_initializing() or not module.has_variable("params", name):
        return module.param(name, lambda key: Named(init(key, shape, jnp.float32), names))
    # flax's own way to look at the shape is to trace the initialiser, of every weight each time a model is traced
    value = nn.meta.unbox(module.get_variable("params", name))
    if value.shape != shape:
        raise ScopeParamShapeError(name, module.scope.path_text, value.shape, shape)
    return value


def sizes_in_use() -> dict[str, int]:
    """How many devices lie along each axis of the mesh in use; empty without one."""
    return dict(jax.sharding.get_abstract_mesh().shape)


def ways(name: str) -> int:
    """Into how many parts the mesh in use splits axes of that name; 1 without a mesh."""
    sizes = sizes_in_use()
    return math.prod(sizes.get(axis, 1) for axis in RULES[name])


def platform() -> str:
    """cpu, gpu or tpu: of the mesh in use, which may be a pod that is only planned, else of this machine."""
    mesh = jax.sharding.get_abstract_mesh()
    planned = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if planned is None else planned.platform


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Split x over the mesh in use by the logical names of its axes; without a mesh, x itself. An axis that does not
    divide stays whole (one prompt on eight devices); what must divide is checked where weights are placed."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition(names, x.shape, dict(mesh.shape), strict=False))


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Rows over every axis that splits the batch, and each row's places over "sequence"."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"], RULES["length"]))


def local_rows(mesh: jax.sharding.Mesh, rows: int) -> np.ndarray:
    """Which of a batch's rows the devices of this process hold, in order."""
    shape = (rows, mesh.shape["sequence"])
    places = batch_sharding(mesh).addressable_devices_indices_map(shape).values()
    return np.unique(np.concatenate([np.arange(rows)[place[0]] for place in places]))


def place_batch(batch, mesh: jax.sharding.Mesh, rows: int | None = None):
    """Host arrays to devices: this process's `local_rows` of a batch of so many rows; None: all of them are here."""
    sharding = batch_sharding(mesh)

    def place(x):
        total = rows or len(x)
        here = local_rows(mesh, total)
        of_all = here if len(x) < total else np.arange(total)

        def part(index):
            start, stop, _ = index[0].indices(total)
            first = np.searchsorted(of_all, start)
            return x[first : first + stop - start, *index[1:]]

        return jax.make_array_from_callback((total, *x.shape[1:]), sharding, part)

    return jax.tree.map(place, batch)
