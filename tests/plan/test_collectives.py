"""Bytes between devices: programs of which they are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from lmjax.plan.collectives import Collective, by_kind, collectives
from lmjax.sharding import Mesh, build_mesh


def of(function, *shapes):
    mesh = build_mesh(Mesh(data=2, fsdp=4))
    with jax.set_mesh(mesh):
        shards = jax.shard_map(function, in_specs=P(), out_specs=P(), check_vma=False)
        return collectives(jax.jit(shards).lower(*shapes).compile().as_text())


X = jax.ShapeDtypeStruct((16, 8), jnp.float32)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: jax.lax.psum(x, "fsdp"), Collective("all-reduce", 512, 4)),
        (lambda x: jax.lax.psum(x, ("data", "fsdp")), Collective("all-reduce", 512, 8)),
        (lambda x: jax.lax.all_gather(x, "data"), Collective("all-gather", 1024, 2)),
        (lambda x: jax.lax.psum_scatter(x, "fsdp"), Collective("reduce-scatter", 512, 4)),
        (lambda x: jax.lax.all_to_all(x, "fsdp", 0, 0), Collective("all-to-all", 512, 4)),
    ],
    ids=["sum", "sum over all", "gather", "scatter", "all to all"],
)
def test_each_kind_has_its_bytes_and_its_group(function, expected):
    shape = jax.ShapeDtypeStruct((4, 32), jnp.float32) if expected.kind in ("reduce-scatter", "all-to-all") else X
    assert of(function, shape) == {expected: 1}


def test_loops_count_their_turns():
    def turn(x, _):
        inner = jax.lax.fori_loop(0, 3, lambda _, x: jax.lax.psum(x, "data") * 0.5, x)
        return jax.lax.psum(inner, "fsdp") * 0.25, None

    found = of(lambda x: jax.lax.scan(turn, x, None, length=5)[0], X)
    assert found == {Collective("all-reduce", 512, 2): 15, Collective("all-reduce", 512, 4): 5}
    sent = 15 * 512 * 2 * 1 / 2 + 5 * 512 * 2 * 3 / 4
    assert by_kind(found) == {"all-reduce": (20, sent)}


TPU_PROGRAM = """HloModule jit_step, entry_computation_layout={()->()}, num_partitions=8

%scatter (input.1: bf16[64,128]) -> bf16[8,128] {
  %input.1 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.1 = bf16[64,128]{1,0:T(8,128)(2,1)} all-reduce(%input.1), channel_id=1, replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %dynamic-slice.1 = bf16[8,128]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.1, %zero, %zero)
}

%begin (p: bf16[64,16]) -> (bf16[64,32]) {
  %all-gather.1 = bf16[64,32]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=2, replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_0'}, dimensions={1}
  ROOT %custom-call.1 = (bf16[64,32]) custom-call(%all-gather.1), custom_call_target="x"
}

%end (p: bf16[64,16]) -> bf16[64,32] {
  ROOT %all-gather.2 = bf16[64,32]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=2, replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_0'}, dimensions={1}
}

%body (p: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
  %f.1 = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%x), kind=kCustom, calls=%scatter
"quoted":"}"
}}, metadata={op_name="a line of a kernel's text"}
  %f.2 = (bf16[64,32]) fusion(%x), kind=kCustom, calls=%begin
  %f.3 = bf16[64,32]{1,0} fusion(%x), kind=kCustom, calls=%end
}

%condition (p: (s32[], bf16[64,128])) -> pred[] {
  %constant.9 = s32[]{:T(128)} constant(96)
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.9), direction=LT
}

ENTRY %main () -> () {
  %while.1 = (s32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) while(%tuple), condition=%condition, body=%body
  %all-reduce.7 = f32[]{:T(128)} all-reduce(%y), channel_id=9, replica_groups={}, to_apply=%add
}
"""


def test_programs_for_tpu():
    """A sum that is cut afterwards is a scattering; a gathering that runs beside other work is named in two fusions."""
    assert collectives(TPU_PROGRAM) == {
        Collective("reduce-scatter", 64 * 128 * 2, 4): 96,
        Collective("all-gather", 64 * 32 * 2, 2): 96,
        Collective("all-reduce", 4, 8): 1,
    }
