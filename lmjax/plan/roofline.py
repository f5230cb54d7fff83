"""How fast a step can be at best: the slowest of its products, its memory and its wires."""

import math
from dataclasses import dataclass

from lmjax.experiment import Experiment
from lmjax.plan.collectives import Collective
from lmjax.plan.compiled import Sizes
from lmjax.plan.counts import (
    expert_params,
    graded_share,
    kept_activations,
    params,
    params_by_part,
    passed_by,
    trained_flops_per_token,
    unpredicted,
    work_per_token,
)
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
    """compute: `work_per_token`, less what freezing saves and what is not predicted, at the peak rate, on the busiest
    device; memory: see `memory_traffic`; wires: the bytes of each collective over the links that its group has."""
    cfg, device, devices = experiment.model_of_rows, topology.device, topology.count
    tokens = experiment.batch_size * cfg.context / devices
    work, parts = work_per_token(cfg, experiment.source_length), mesh.shape["sequence"]
    # the device with the end of each row sees nearly all keys before it, twice the mean
    flops = work.total + work.attention * (1 - 1 / parts) - 2 * passed_by(experiment) - 6 * unpredicted(experiment)
    peak = device.peak if cfg.dtype == "bfloat16" else device.peak32
    return Roofline(
        compute=tokens * flops / peak,
        memory=memory_traffic(experiment, mesh, size) / device.bandwidth,
        wires=sum(times * one.wire / link_rate(topology, one) for one, times in found.items()),
    )


def counted_collectives(experiment: Experiment, mesh) -> dict[Collective, int]:
    """What must go between devices by the split alone, where no compiler says: weights gathered and gradients
    scattered over fsdp (ZeRO-3), gradients summed over data, activations over tensor (Megatron-LM), keys and values,
    also of a source, gathered over sequence, tokens of experts gathered and their sums scattered over expert, in every
    microbatch."""
    cfg, sizes = experiment.model_of_rows, dict(mesh.shape)
    number = 2 if cfg.dtype == "bfloat16" else 4
    experts = expert_params(cfg)
    shared, own = (n * number / sizes["tensor"] for n in (params(cfg) - experts, experts / sizes["expert"]))
    again = cfg.remat not in ("nothing", "products")
    rows = experiment.microbatch_size / sizes["data"] / sizes["fsdp"] / sizes["expert"]
    place, of_source = (rows * n / sizes["sequence"] * number for n in (cfg.context, experiment.source_length))
    # in a gathering, of one place's numbers
    keys = 2 * sizes["sequence"] * cfg.n_kv_heads * cfg.head_width / sizes["tensor"]
    sent = place * cfg.width * sizes["expert"]
    fsdp, graded = sizes["fsdp"] * sizes["sequence"], graded_share(experiment)
    wanted = [
        ("all-gather", shared + own, ("fsdp", "sequence"), 2 + again),
        ("reduce-scatter", graded * (shared + own), ("fsdp", "sequence"), 1),
        ("all-reduce", graded * (shared + own) / fsdp, ("data",), 1),
        ("all-reduce", place * cfg.width, ("tensor",), cfg.layers * (4 + 2 * again)),
        ("all-gather", place * keys, ("sequence",), cfg.layers * (1 + again)),
        ("reduce-scatter", place * keys, ("sequence",), cfg.layers),
        ("all-reduce", graded * shared / fsdp, ("expert",), 1),
    ]
    if cfg.encoder_layers:
        stacks = cfg.encoder_layers + cfg.layers
        wanted += [
            # attention between the stacks: what it gives and the gradient of its queries; that of the source's vectors
            ("all-reduce", place * cfg.width, ("tensor",), cfg.layers * (2 + again)),
            ("all-reduce", of_source * cfg.width, ("tensor",), cfg.encoder_layers * (4 + 2 * again) + cfg.layers),
            # the encoder's keys are its own, and of the source every layer of the decoder makes its own
            ("all-gather", of_source * keys, ("sequence",), stacks * (1 + again)),
            ("reduce-scatter", of_source * keys, ("sequence",), stacks),
        ]
    if experts:
        wanted += [(kind, sent, ("expert",), cfg.layers * (2 + again)) for kind in ("all-gather", "reduce-scatter")]
    found: dict[Collective, int] = {}
    for kind, size, axes, times in wanted:
        group = math.prod(sizes[axis] for axis in axes)
        if group > 1:
            one = Collective(kind, size, group, reach(sizes, axes))
            found[one] = found.get(one, 0) + times * experiment.microbatches
    return found


def reach(sizes: dict[str, int], axes: tuple[str, ...]) -> int:
    """Over how many devices, as they are numbered, a group along these axes of the mesh spreads: the last axis has
    neighbours."""
    names, spread = list(sizes), 1
    for axis in axes:
        inner = math.prod(sizes[name] for name in names[names.index(axis) + 1 :])
        spread += (sizes[axis] - 1) * inner
    return spread


def memory_traffic(experiment: Experiment, mesh, size: Sizes) -> float:
    """Bytes that one device must move at the least: in every microbatch the weights of its products, read three times
    and their gradients added up, and the kept activations, written and read; once a step all of the state."""
    cfg = experiment.model_of_rows
    number = 2 if cfg.dtype == "bfloat16" else 4
    # a microbatch has tokens for every expert
    experts, looked_up = expert_params(cfg), params_by_part(cfg).get("positions", 0)
    weights = (params(cfg) - looked_up - experts + experts / mesh.shape["expert"]) / mesh.shape["tensor"]
    kept = kept_activations(experiment) / math.prod(mesh.shape.values())
    a_microbatch = 3 * number * weights + 8 * size.trained / 4 + 2 * kept
    return experiment.microbatches * a_microbatch + 2 * (size.trained + size.optimizer) + size.trained


def link_rate(topology: Topology, one: Collective) -> float:
    """Bytes/s that a device sends in it: over as many of the torus's dimensions as hold the group, both ways round;
    among GPUs over NVLink within a node, over the network beyond it."""
    device: Device = topology.device
    group = one.group
    if device.node is not None:
        return device.link if max(group, one.reach) <= device.node else device.beyond
    held, dimensions = 1, 0
    for side in sorted(topology.shape, reverse=True):
        if held >= group:
            break
        held, dimensions = held * side, dimensions + 1
    return 2 * device.link * max(1, dimensions)


def mfu(experiment: Experiment, topology: Topology, seconds: float) -> float:
    """Model FLOPs utilisation of a step that takes so long (PaLM, arXiv:2204.02311, appendix B)."""
    flops = experiment.tokens_per_step * trained_flops_per_token(experiment)
    return flops / seconds / topology.count / topology.device.peak
