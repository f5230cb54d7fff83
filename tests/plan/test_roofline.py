"""Seconds and bytes of cases that are small enough to reckon by hand."""

from dataclasses import replace

import pytest

from lmjax.experiment import DataConfig
from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Experts, Gated
from lmjax.models.lora import LoRA
from lmjax.models.transformer import abstract_params
from lmjax.plan.collectives import Collective, collectives
from lmjax.plan.compiled import planned_mesh, sizes_of
from lmjax.plan.counts import expert_params, params, work_per_token
from lmjax.plan.devices import topology_of
from lmjax.plan.memory import temporaries
from lmjax.plan.roofline import counted_collectives, link_rate, memory_traffic, mfu, reach, roofline
from lmjax.sharding import Mesh
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.trees import named_leaves
from tests import tiny

# L 2, D 64, N 4, K 2, H 16, T 32, V 256; bfloat16
CFG = tiny.llama(width=64, heads=4, kv_heads=2, vocab=256, dtype="bfloat16", feedforward=Gated(width=128))
MOE = replace(CFG, feedforward=Experts(count=8, chosen=2, width=128), qk_norm=False)


def case(topology: str, cfg: ModelConfig = CFG, changes: dict | None = None, **mesh):
    experiment = tiny.experiment(
        "unused", model=cfg, batch_size=32, microbatches=2, mesh=Mesh(**({"data": 1} | mesh)), **changes or {}
    )
    topology = topology_of(topology)
    return experiment, topology, planned_mesh(experiment, topology)[0]


@pytest.mark.parametrize(
    ("topology", "one", "rate"),
    [
        ("h100:16", Collective("all-gather", 1, 8, 8), 450e9),
        ("h100:16", Collective("all-gather", 1, 8), 450e9),
        ("h100:16", Collective("all-reduce", 1, 2, 9), 50e9),  # replicas on two nodes
        ("h100:16", Collective("all-reduce", 1, 16, 16), 50e9),
        ("v5p:4x4x4", Collective("all-gather", 1, 4), 2 * 90e9),
        ("v5p:4x4x4", Collective("all-gather", 1, 16), 4 * 90e9),
        ("v5p:4x4x4", Collective("all-gather", 1, 64), 6 * 90e9),
        ("v5e:2x8", Collective("all-gather", 1, 8), 2 * 45e9),
    ],
)
def test_the_rate_of_a_link_is_that_of_where_the_group_lies(topology, one, rate):
    assert link_rate(topology_of(topology), one) == rate


def test_a_group_reaches_over_the_axes_within_its_own():
    sizes = {"data": 2, "fsdp": 4, "sequence": 1, "tensor": 2, "expert": 1}
    assert [reach(sizes, (axis,)) for axis in ("data", "fsdp", "tensor")] == [9, 7, 2]
    assert reach(sizes, ("fsdp", "sequence")) == 7


def test_dense_collectives():
    """fsdp 4 x tensor 2: weights in bfloat16, half of them on each of two, gathered twice and scattered once."""
    experiment, _, mesh = case("h100:8", fsdp=4, tensor=2)
    found = counted_collectives(experiment, mesh)
    weights = params(CFG) * 2 / 2
    activations = 16 / 4 * 32 * 64 * 2
    assert found == {
        Collective("all-gather", weights, 4, 7): 2 * 2,
        Collective("reduce-scatter", weights, 4, 7): 2,
        Collective("all-reduce", activations, 2, 2): 2 * 2 * 4,
    }


def test_experts_and_sequence_have_their_own():
    experiment, _, mesh = case("h100:8", MOE, expert=8)
    found = counted_collectives(experiment, mesh)
    shared, sent = (params(MOE) - expert_params(MOE)) * 2, 16 * 32 * 64 * 2
    assert expert_params(MOE) == 2 * 8 * 3 * 64 * 128
    assert found == {
        Collective("all-reduce", shared, 8, 8): 2,
        Collective("all-gather", sent, 8, 8): 2 * 2 * 2,
        Collective("reduce-scatter", sent, 8, 8): 2 * 2 * 2,
    }
    experiment, _, mesh = case("h100:8", sequence=8)
    keys = 2 * 16 * 32 * 2 * 16 * 2
    assert counted_collectives(experiment, mesh)[Collective("reduce-scatter", keys, 8, 8)] == 2 * 2


def test_two_stacks_and_what_lies_between_them():
    """3 layers of a decoder on rows of 32, 2 of an encoder on sources of 16, in float32; 4 heads of 12."""
    t5 = tiny.t5(vocab=256)
    changes = {"task": Seq2Seq(), "data": DataConfig(length=32, source_length=16)}
    experiment, _, mesh = case("h100:8", t5, changes, fsdp=4, tensor=2)
    found = counted_collectives(experiment, mesh)
    weights, place = params(t5) * 4 / 2, 16 / 4 * 32 * 4
    assert found == {
        Collective("all-gather", weights, 4, 7): 2 * 2,
        Collective("reduce-scatter", weights, 4, 7): 2,
        # three parts of a layer, forward and backward
        Collective("all-reduce", 32 * place, 2, 2): 2 * 3 * 6,
        # two parts, and the gradient of the source in each layer of the decoder
        Collective("all-reduce", 16 * place, 2, 2): 2 * (2 * 4 + 3),
    }
    experiment, _, mesh = case("h100:8", t5, changes, sequence=8)
    found = counted_collectives(experiment, mesh)
    keys = 2 * 16 * 4 * 12 * 4
    assert found[Collective("reduce-scatter", 32 * keys, 8, 8)] == 2 * 3
    assert found[Collective("all-gather", 16 * keys, 8, 8)] == 2 * (2 + 3)
    # sources as long as the targets
    found = counted_collectives(replace(experiment, data=DataConfig(length=32)), mesh)
    assert found[Collective("all-gather", 32 * keys, 8, 8)] == 2 * (3 + 2 + 3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_layer_at_work_is_of_one_stack(dtype):
    def of(source: int = 16, adapter=None, **changes):
        own = {"task": Seq2Seq(), "data": DataConfig(length=32, source_length=source), "adapter": adapter}
        own |= {"init_from": "base"}
        experiment, _, mesh = case("h100:8", tiny.t5(vocab=256, dtype=dtype, **changes), own, fsdp=4, tensor=2)
        return temporaries(experiment, mesh, 0), sum(
            4 * x.size for path, x in named_leaves(abstract_params(experiment.model)) if "blocks/" in path
        )

    few, blocks = of()
    many, more = of(encoder_layers=20)
    assert many.layer == few.layer and many.kept > few.kept
    # the layer that reads more is the larger
    assert of(layers=30)[0].layer == few.layer < of(source=32)[0].layer
    assert of(source=32)[0].layer == pytest.approx(few.layer, rel=0.3)
    # over 8 devices, and norms on each of them
    cast = (many.weights - few.weights) * 8 / ((more - blocks) / 2)
    assert cast == (pytest.approx(1, rel=0.05) if dtype == "bfloat16" else 0)
    adapted, _ = of(adapter=LoRA(weights=("encoder/blocks/*/kernel",)))
    assert adapted.weights > few.weights and adapted.gradients == 0


def test_seconds_of_a_step():
    experiment, topology, mesh = case("h100:8", fsdp=8)
    size = sizes_of(experiment, mesh)
    gathered = Collective("all-gather", 8e9, 8, 8)
    made = roofline(experiment, topology, mesh, size, {gathered: 3})
    assert made.compute == pytest.approx(32 * 32 / 8 * work_per_token(CFG).total / 989e12)
    assert made.wires == pytest.approx(3 * 8e9 * 7 / 8 / 450e9)
    assert made.bound == "wires"
    flops = 6 * params(CFG) + 12 * 2 * 4 * 16 * 32
    assert mfu(experiment, topology, made.step) == pytest.approx(32 * 32 * flops / made.step / 8 / 989e12)


def test_a_microbatch_reads_the_weights_of_all_its_experts():
    one, eight = (case("h100:8", MOE, expert=n, data=8 // n) for n in (1, 8))
    size = sizes_of(one[0], one[2])
    traffic = [memory_traffic(experiment, mesh, size) for experiment, _, mesh in (one, eight)]
    # two microbatches, three times, in bfloat16: seven eighths of the experts are elsewhere
    assert traffic[0] - traffic[1] == pytest.approx(2 * 3 * 2 * expert_params(MOE) * 7 / 8)


GPU_PROGRAM = """HloModule jit_step, num_partitions=8

ENTRY %main () -> () {
  %a = ((f32[16]{0}, f32[32]{0}), (f32[128]{0}, f32[256]{0})) all-gather-start(%x, %y), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  %b = (f32[1024]{0}, f32[128]{0}) reduce-scatter-start(%x), channel_id=2, replica_groups=[1,8]<=[8], to_apply=%add
  %c = (f32[64]{0}, f32[64]{0}) all-to-all-start(%x), channel_id=3, replica_groups=[1,8]<=[8]
  %d = (f32[64]{0}, f32[64]{0}, u32[], u32[]) collective-permute-start(%x), channel_id=4, source_target_pairs={{0,1}}
  %e = f32[64]{0} all-reduce-start(%x), channel_id=5, replica_groups=[1,8]<=[8], to_apply=%add
}
"""


def test_programs_for_gpu_name_operands_and_results():
    assert collectives(GPU_PROGRAM) == {
        Collective("all-gather", 4 * (128 + 256), 8): 1,
        Collective("reduce-scatter", 4 * 1024, 8): 1,
        Collective("all-to-all", 4 * 64, 8): 1,
        Collective("collective-permute", 4 * 64, 2): 1,
        Collective("all-reduce", 4 * 64, 8): 1,
    }
