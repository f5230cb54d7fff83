"""How fast a step can be at best: the slowest of its products, its memory and its wires."""

import math
from dataclasses import dataclass

from lmjax.experiment import Experiment
from lmjax.plan.collectives import Collective
from lmjax.plan.compiled import Sizes
from lmjax.plan.counts import flops_per_token, kept_activations, params, used_params, work_per_token
from lmjax.plan.devices import Device, Topology


@dataclass(frozen=True)
class Roofline:
    """Seconds of one step, if each of the three ran alone at the makers' rates."""

    compute: float
    memory: float
    wires: float

    @property
    def step(self) -> float:
        """As if all three went on at one time."""
        return max(self.compute, self.memory, self.wires)

    @property
    def bound(self) -> str:
        return max(("compute", "memory", "wires"), key=lambda name: getattr(self, name))


def roofline(experiment: Experiment, topology: Topology, mesh, size: Sizes, found: dict[Collective, int]) -> Roofline:
    """compute: `work_per_token` at the peak rate, on the busiest device; memory: see `memory_traffic`; wires: the
    bytes of each collective over the links that its group has."""
    cfg, device, devices = experiment.model, topology.device, topology.count
    tokens = experiment.batch_size * cfg.context / devices
    work, parts = work_per_token(cfg), mesh.shape["sequence"]
    # the device with the end of each row sees nearly all keys before it, twice the mean
    flops = work.total + work.attention * (1 - 1 / parts)
    peak = device.peak if cfg.dtype == "bfloat16" else device.peak32
    return Roofline(
        compute=tokens * flops / peak,
        memory=memory_traffic(experiment, mesh, size) / device.bandwidth,
        wires=sum(times * one.wire / link_rate(topology, one.group) for one, times in found.items()),
    )


def counted_collectives(experiment: Experiment, mesh) -> dict[Collective, int]:
    """What must go between devices by the split alone, where no compiler says: weights gathered and gradients
    scattered over fsdp (ZeRO-3), gradients summed over data, activations over tensor (Megatron-LM), in every
    microbatch."""
    cfg, sizes = experiment.model, dict(mesh.shape)
    number = 2 if cfg.dtype == "bfloat16" else 4
    fsdp, data, tensor = sizes["fsdp"] * sizes["sequence"], sizes["data"], sizes["tensor"]
    weights = params(cfg) * number / tensor / sizes["expert"]
    again = cfg.remat not in ("nothing", "products")
    rows = experiment.microbatch_size / data / sizes["fsdp"] / sizes["expert"]
    row = cfg.context / sizes["sequence"] * cfg.width * number
    wanted = [
        (Collective("all-gather", weights, fsdp), 2 + again),
        (Collective("reduce-scatter", weights, fsdp), 1),
        (Collective("all-reduce", weights / fsdp, data), 1),
        (Collective("all-reduce", rows * row, tensor), cfg.layers * (4 + 2 * again)),
    ]
    return {one: times * experiment.microbatches for one, times in wanted if one.group > 1}


def memory_traffic(experiment: Experiment, mesh, size: Sizes) -> float:
    """Bytes that one device must move at the least: in every microbatch the weights of its products, read three times
    and their gradients added up, and the kept activations, written and read; once a step all of the state."""
    cfg = experiment.model
    number = 2 if cfg.dtype == "bfloat16" else 4
    weights = used_params(cfg) / mesh.shape["tensor"] / mesh.shape["expert"]
    kept = kept_activations(experiment) / math.prod(mesh.shape.values())
    a_microbatch = 3 * number * weights + 8 * size.params / 4 + 2 * kept
    return experiment.microbatches * a_microbatch + 2 * (size.params + size.optimizer) + size.params


def link_rate(topology: Topology, group: int) -> float:
    """Bytes/s that a device sends to a group of that size: over as many of the torus's dimensions as hold the group,
    both ways round; among GPUs over NVLink within a node, over the network beyond it."""
    device: Device = topology.device
    if device.node is not None:
        return device.link if group <= device.node else device.beyond
    held, dimensions = 1, 0
    for side in sorted(topology.shape, reverse=True):
        if held >= group:
            break
        held, dimensions = held * side, dimensions + 1
    return 2 * device.link * max(1, dimensions)


def mfu(experiment: Experiment, topology: Topology, seconds: float) -> float:
    """Model FLOPs utilisation of a step that takes so long (PaLM, arXiv:2204.02311, appendix B)."""
    flops = experiment.batch_size * experiment.model.context * flops_per_token(experiment.model)
    return flops / seconds / topology.count / topology.device.peak
