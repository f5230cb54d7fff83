"""The train step as the compiler makes it: its memory, and what goes between devices."""

import math
import re
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from lmjax.data.batch import Batch, SourceBatch
from lmjax.errors import UserError
from lmjax.experiment import Experiment
from lmjax.plan.collectives import Collective, collectives
from lmjax.plan.devices import Topology, devices_of
from lmjax.sharding import batch_sharding, build_mesh
from lmjax.tasks.preferences import Preferences
from lmjax.train import state as train_state
from lmjax.train.step import check_split, compile_step


@dataclass(frozen=True)
class Sizes:
    """Of the parameters, the optimizer's state and one batch on one device, from shapes and shardings alone. trained:
    those of the parameters that training changes; of an adapter, A and B."""

    params: int
    optimizer: int
    batch: int
    trained: int


@dataclass(frozen=True)
class Figures:
    """Of a compiled step, in bytes on one device. arguments: state and batch, as the device lays them out. temporaries:
    what the step needs beside them, at its worst moment. code: the program. seconds: that the compiler took."""

    arguments: int
    temporaries: int
    code: int
    host: int
    collectives: dict[Collective, int]
    seconds: float

    @property
    def peak(self) -> int:
        """The new state is written over the old one, so it takes no room of its own."""
        return self.arguments + self.temporaries + self.code


class TooLarge(Exception):
    """The compiler found no way to fit the step into the device. needed: bytes on one device, as far as it said."""

    def __init__(self, needed: float | None):
        super().__init__(needed)
        self.needed = needed


def abstract_batch(experiment: Experiment, mesh) -> Batch:
    """The shapes of one step's batch."""
    rows = batch_sharding(mesh)

    def field(length, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((experiment.batch_size, length), dtype, sharding=rows)

    task, ids = experiment.task, field(experiment.length)
    return Batch(
        tokens_BT=ids, positions_BT=ids, segments_BT=ids if experiment.segmented else None, targets_BT=ids,
        weights_BT=field(experiment.length, jnp.float32), types_BT=ids if task.has_types else None,
        source=SourceBatch(*3 * [field(experiment.source_length)]) if experiment.model.encoder_layers else None,
        reference_BT=field(experiment.length, jnp.float32) if isinstance(task, Preferences) else None,
    )  # fmt: skip


def bytes_on_device(tree) -> int:
    """One device's share of abstract arrays that have a sharding; what lies on the host does not count."""
    leaves = [x for x in jax.tree.leaves(tree) if x.sharding.memory_kind != "pinned_host"]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def sizes_of(experiment: Experiment, mesh) -> Sizes:
    """What the compiler's arguments must come to. The mesh may be an abstract one."""
    state, frozen = train_state.abstract(experiment, train_state.transform(experiment), mesh)
    trained = bytes_on_device(state.params)
    return Sizes(
        params=trained + bytes_on_device(frozen),
        optimizer=bytes_on_device(state.opt_state),
        batch=bytes_on_device(abstract_batch(experiment, mesh)),
        trained=trained,
    )


def compile_train_step(experiment: Experiment, mesh: jax.sharding.Mesh) -> tuple[jax.stages.Compiled, Figures]:
    """The very step that `train` runs, compiled for the devices of this mesh. Raises TooLarge."""
    optimizer = train_state.transform(experiment)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        state, frozen = train_state.abstract(experiment, optimizer, mesh)
        lowered = compile_step(experiment, optimizer, mesh).lower(state, frozen, abstract_batch(experiment, mesh))
        try:
            program = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise TooLarge(_needed(str(error))) from None
    memory = program.memory_analysis()
    return program, Figures(
        arguments=memory.argument_size_in_bytes,
        temporaries=_temporaries(memory, mesh),
        code=memory.generated_code_size_in_bytes,
        host=memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes,
        collectives=collectives(program.as_text()),
        seconds=time.perf_counter() - start,
    )


def _temporaries(memory, mesh: jax.sharding.Mesh) -> int:
    """libtpu's temp_size_in_bytes is no amount of memory (a step that compiled for 15.75 GiB had 19.7 GiB of it); its
    peak is, arguments included: it lies within a few hundredths of the heap that its buffer assignment lays out."""
    if mesh.devices.flat[0].platform == "tpu":
        return memory.peak_memory_in_bytes - memory.argument_size_in_bytes
    return memory.temp_size_in_bytes


def _needed(message: str) -> float | None:
    """From "temporaries (131.53G) exceeds available HBM (95.74G)" or "Used 120.05G of 95.74G hbm"; both contain the
    arguments, whatever they say."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = re.search(r"(?:temporaries \(|[Uu]sed )([\d.]+)([KMGT])", message)
    return float(found[1]) * units[found[2]] if found else None


def planned_mesh(experiment: Experiment, topology: Topology):
    """(mesh, whether there is a compiler for its devices). Raises UserError where the mesh does not fit the devices, or
    the model not the mesh."""
    if topology.here:
        mesh = build_mesh(experiment.mesh)
    elif topology.is_tpu:
        mesh = _pod_mesh(experiment, topology)
    else:
        sizes = experiment.mesh.resolve(topology.count)
        mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    real = topology.here or topology.is_tpu
    check_split(experiment, mesh, here=real)
    return mesh, real


def _pod_mesh(experiment: Experiment, topology: Topology) -> jax.sharding.Mesh:
    devices = devices_of(topology)
    try:
        return build_mesh(experiment.mesh, devices)
    except NotImplementedError:
        sizes = " x ".join(f"{name} {n}" for name, n in experiment.mesh.resolve(len(devices)).items() if n > 1)
        sides = " x ".join(map(str, topology.shape))
        raise UserError(
            f"mesh: {sizes} does not lie on a pod of {sides}: each axis must be a product of some of its sides"
        ) from None
