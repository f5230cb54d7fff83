"""Splash attention, the Pallas kernel for TPU that ships with JAX: one call on each device."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lmjax.sharding import partition, ways

# queries and keys that the kernel holds at one time; its own default of 128 keeps a TPU's matrix units waiting
BLOCK = 512
# the backward kernel gives a gradient of all queries for each block of keys, and these are added up: more than PARTIAL
# would fill the memory with them, and larger blocks than KEYS the kernel's own
PARTIAL, KEYS = 16, 2048
# under this name the kernel's output and its softmax's sums can be kept for the backward pass (jax.checkpoint)
SAVED = "splash_residuals"


def block_size(length: int) -> int:
    """The largest block that divides the length of a shard, which is a multiple of 128."""
    return next(size for size in range(min(BLOCK, length), 0, -128) if length % size == 0)


def key_block(length: int, parts: int) -> int:
    """Keys that the backward kernel holds, a multiple of `block_size`; a block that the mask cuts is computed whole."""
    size = block_size(length // parts)
    wanted = max(size, min(KEYS, length // PARTIAL))
    return next(n for n in range(wanted // size * size, 0, -size) if length % n == 0)


def attend(q_BTNH, k_BTKH, v_BTKH, segments_BT, cap: float | None, window: int | None) -> jax.Array:
    """As `attention.attend`, for queries that are scaled already. A Pallas kernel is opaque to the compiler, so the
    split is made by hand: rows and heads apart, and where "sequence" splits the rows, all keys to each device."""
    mesh = jax.sharding.get_abstract_mesh()
    length, parts = q_BTNH.shape[1], ways("length")
    local_heads = q_BTNH.shape[2] // ways("heads")
    kernel = _kernel(length, local_heads, parts, cap, window)
    if segments_BT is None:
        segments_BT = jnp.ones(q_BTNH.shape[:2], jnp.int32)

    def one_shard(kernel, q_BTNH, k_BSKH, v_BSKH, own_BT, all_BS):
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

        q, k, v = (x.swapaxes(1, 2) for x in (q_BTNH, k_BSKH, v_BSKH))
        ids = splash.SegmentIds(own_BT, all_BS)
        return jax.vmap(kernel)(q, k, v, ids).swapaxes(1, 2).astype(q_BTNH.dtype)

    if mesh.empty:
        return one_shard(kernel, q_BTNH, k_BTKH, v_BTKH, segments_BT, segments_BT)

    def spec(x, *names) -> PartitionSpec:
        return partition(names, x.shape, dict(mesh.shape))

    queries = spec(q_BTNH, "batch", "length", "heads", "head_dim")
    keys = spec(k_BTKH, "batch", None, "kv_heads", "head_dim")
    where = jax.sharding.NamedSharding(mesh, PartitionSpec(None, "sequence" if parts > 1 else None))
    specs = (queries, keys, keys, spec(segments_BT, "batch", "length"), spec(segments_BT, "batch", None))
    return jax.shard_map(
        one_shard, in_specs=(kernel.manual_sharding_spec(where), *specs), out_specs=queries, check_vma=False
    )(kernel, q_BTNH, k_BTKH, v_BTKH, segments_BT, segments_BT)


def _kernel(length: int, heads: int, parts: int, cap: float | None, window: int | None):
    """The kernel for one device's heads, whose masks are split in `parts` along the queries."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

    shape, size = (length, length), block_size(length // parts)
    seen = splash_mask.CausalMask(shape, shard_count=parts)
    if window is not None:
        seen = splash_mask.LocalMask(shape, (window - 1, 0), 0, shard_count=parts)
    sizes = splash.BlockSizes(
        block_q=size, block_kv=size, block_q_dkv=size, block_kv_dkv=key_block(length, parts),
        block_kv_dkv_compute=size, use_fused_bwd_kernel=True,
    )  # fmt: skip
    return splash.make_splash_mha(
        splash_mask.MultiHeadMask([seen] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=parts,
        attn_logits_soft_cap=cap, residual_checkpoint_name=SAVED,
    )  # fmt: skip
