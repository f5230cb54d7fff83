"""softmax(Q K^T / sqrt(d_k)) V (arXiv:1706.03762, eq. 1) by several kernels that give the same numbers.

A query sees the keys of its own segment; of a causal model only those at or before its own place, and where there is a
window only the last `window` of these, its own included. Heads: N for queries, K for keys and values, G = N / K
queries share a key (arXiv:2305.13245).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lmjax import sharding
from lmjax.errors import UserError
from lmjax.models import block_attention, splash
from lmjax.models.positions import Relative

if TYPE_CHECKING:
    from lmjax.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Auto:
    """The fastest kernel that can do the work on the device at hand."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The formula as it stands: a (T, T) matrix of scores a head. Runs everywhere."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The formula a block of queries at a time: less memory. Causal, it reads no key after the block: half the
    products."""

    size: int = 128

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size is {self.size}; expected a positive number")


@dataclass(frozen=True, kw_only=True)
class CudnnFlash:
    """NVIDIA's fused kernel through jax.nn.dot_product_attention."""


@dataclass(frozen=True, kw_only=True)
class Splash:
    """The Pallas kernel for TPU that ships with JAX."""


Kernel = Auto | Reference | Blocks | CudnnFlash | Splash


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a call of attention asks of a kernel. platform: see the function of that name. segments: whether documents
    are kept apart. dropout: on the attention weights. cap: on the scores. parts: into how many a row is split. causal:
    see above. bias: whether something is added to the scores (`positions.Relative`)."""

    platform: str
    dtype: str
    length: int
    head_width: int
    segments: bool
    dropout: bool
    cap: bool
    parts: int = 1
    causal: bool = True
    bias: bool = False


def platform() -> str:
    """cpu, tpu, or gpu, which stands for CUDA of compute capability 8.0 or higher; an older or another GPU is named.
    Where a mesh is in use, of its devices."""
    name = sharding.platform()
    if name != "gpu":
        return name
    device = jax.devices()[0]
    capability = str(getattr(device, "compute_capability", ""))
    is_cuda = capability.replace(".", "").isdigit() and "rocm" not in device.client.platform_version.lower()
    return "gpu" if is_cuda and float(capability) >= 8 else f"{device.device_kind} {capability}"


def need_of(cfg: "ModelConfig", *, apart: bool, length: int) -> Need:
    """What training this model on rows of this length asks for, on the mesh in use."""
    return Need(
        platform=platform(),
        dtype=cfg.dtype,
        length=length,
        head_width=cfg.head_width,
        segments=apart,
        dropout=cfg.dropout > 0,
        cap=cfg.score_cap is not None,
        parts=sharding.ways("length"),
        causal=cfg.causal,
        bias=isinstance(cfg.positions, Relative),
    )


def obstacle(kernel: Kernel, need: Need) -> str | None:
    """Why this kernel cannot do the work, or None."""
    match kernel:
        case CudnnFlash():
            if need.platform != "gpu":
                return f"it needs an NVIDIA GPU of compute capability 8.0, this is {need.platform}"
            if need.dtype != "bfloat16":
                return f"it computes in bfloat16, not {need.dtype}"
            if need.head_width > 128 or need.head_width % 8:
                return f"it wants a head width of at most 128 in multiples of 8, not {need.head_width}"
            if need.segments:
                return "it cannot keep documents apart here"
            if need.cap:
                return "it has no cap on the scores"
            if need.parts > 1:
                return "it cannot read rows that mesh.sequence splits"
        case Splash():
            if need.platform != "tpu":
                return f"it needs a TPU, this is {need.platform}"
            if not need.causal:
                return "it is causal here"
            if need.length % (128 * need.parts):
                each = f" on each of {need.parts} devices" if need.parts > 1 else ""
                return f"it wants a length in multiples of 128{each}, not {need.length}"
            if need.head_width % 64:
                return f"it wants a head width in multiples of 64, not {need.head_width}"
    if need.bias and isinstance(kernel, CudnnFlash | Splash):
        return "it adds nothing to the scores, and positions are Relative"
    if need.bias and need.parts > 1 and isinstance(kernel, Blocks):
        return "it adds nothing to the scores of rows that mesh.sequence splits"
    if need.dropout and isinstance(kernel, CudnnFlash | Splash):
        return "it has no dropout on the attention weights"
    if need.dropout and need.parts > 1 and isinstance(kernel, Blocks):
        return "it has no dropout on the attention weights of rows that mesh.sequence splits"
    return None


def choose(kernel: Kernel, need: Need) -> tuple[Kernel, str]:
    """The kernel to run and the reason. Raises UserError where a kernel asked for by name cannot run here."""
    if not isinstance(kernel, Auto):
        if reason := obstacle(kernel, need):
            raise UserError(f"model.kernel={type(kernel).__name__} cannot run here: {reason}")
        return kernel, "asked for"
    fused = {"gpu": CudnnFlash(), "tpu": Splash()}.get(need.platform)
    if fused and not (reason := obstacle(fused, need)):
        return fused, f"fastest on {need.platform}"
    why = f"{type(fused).__name__}: {reason}" if fused else f"fastest on {need.platform}"
    if reason := obstacle(Blocks(), need):
        return Reference(), f"Blocks: {reason}"
    return Blocks(size=_block_size(need.length)), why


def scale_of(cfg: "ModelConfig", layer, dtype) -> float | jax.Array:
    """What the scores of that layer are multiplied by."""
    scale = cfg.head_width**-0.5 if cfg.score_scale is None else cfg.score_scale
    return jnp.asarray(scale / (layer + 1), dtype) if cfg.scale_by_layer else scale


def names_its_output(cfg: "ModelConfig", length: int) -> bool:
    """Whether the kernel that trains this model has put its output under a name of its own (`splash.SAVED`)."""
    need = need_of(cfg, apart=False, length=length)
    return isinstance(cfg.kernel, Auto | Splash) and obstacle(Splash(), need) is None


def attend(
    q_BTNH, k_BTKH, v_BTKH, segments_BT, kernel: Kernel, *,
    scale: float | jax.Array | None = None, cap: float | None = None, window: int | None = None,
    causal: bool = True, bias_BNTS: jax.Array | None = None, rate: float = 0.0, key=None,
) -> jax.Array:  # fmt: skip
    """Self-attention over one row, (B, T, N, H).

    segments_BT: None: the row is one segment; otherwise only tokens of the same number see each other. causal: see
    above. scale: of the scores; None: 1 / sqrt(H). cap: scores become cap x tanh(score / cap) (Gemma 2,
    arXiv:2408.00118, section 2). window: see above; None: no limit. bias_BNTS: added to the scores; B or 1. rate,
    key: dropout on the attention weights, off where key is None.
    """
    T, H = q_BTNH.shape[1], q_BTNH.shape[-1]
    parts = sharding.ways("length") if T > 1 else 1
    need = Need(
        platform=platform(), dtype=str(q_BTNH.dtype), length=T, head_width=H,
        segments=segments_BT is not None, dropout=key is not None and rate > 0, cap=cap is not None, parts=parts,
        causal=causal, bias=bias_BNTS is not None,
    )  # fmt: skip
    kernel, _ = choose(kernel, need)
    q_BTNH = q_BTNH * (H**-0.5 if scale is None else scale)
    match kernel:
        case CudnnFlash():
            near = None if window is None else (window - 1, 0)
            return jax.nn.dot_product_attention(
                q_BTNH, k_BTKH, v_BTKH, scale=1.0, is_causal=causal, local_window_size=near, implementation="cudnn"
            )
        case Splash():
            return splash.attend(q_BTNH, k_BTKH, v_BTKH, segments_BT, cap, window)
        case Blocks() if parts > 1:
            return _split_rows(q_BTNH, k_BTKH, v_BTKH, segments_BT, kernel.size, cap, window, parts, causal)
    size = kernel.size if isinstance(kernel, Blocks) else T
    spans, masks = [], []
    for start in range(0, T, size):
        stop = min(start + size, T)
        # keys that every query of the block has left behind are not read
        first = 0 if window is None else max(0, start - window + 1)
        last = stop if causal else T
        mask_BTS = visible(jnp.arange(start, stop)[None], jnp.arange(first, last), window, causal)
        if segments_BT is not None:
            mask_BTS = mask_BTS & (segments_BT[:, start:stop, None] == segments_BT[:, None, first:last])
        spans.append((start, stop, first, last))
        masks.append(mask_BTS)
    if isinstance(kernel, Blocks) and cap is None and bias_BNTS is None and not need.dropout:
        return block_attention.attend(tuple(spans), q_BTNH, k_BTKH, v_BTKH, masks)
    return _by_blocks(spans, masks, q_BTNH, k_BTKH, v_BTKH, bias_BNTS, cap, rate, key)


def _by_blocks(spans, masks, q_BTNH, k_BSKH, v_BSKH, bias_BNTS, cap, rate: float, key) -> jax.Array:
    """`masked` of each block of queries over its span of keys."""
    blocks = []
    for (start, stop, first, last), mask_BTS in zip(spans, masks, strict=True):
        block_key = None if key is None else jax.random.fold_in(key, start)
        q, k, v = q_BTNH[:, start:stop], k_BSKH[:, first:last], v_BSKH[:, first:last]
        bias = None if bias_BNTS is None else bias_BNTS[:, :, start:stop, first:last]
        blocks.append(masked(q, k, v, mask_BTS, cap=cap, bias_BNTS=bias, rate=rate, key=block_key))
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=1)


def attend_source(
    q_BTNH, k_BSKH, v_BSKH, mask_BTS, kernel: Kernel, *, scale, cap: float | None = None, rate: float = 0.0, key=None
) -> jax.Array:
    """Attention of a row to another one, (B, T, N, H): by blocks of queries, or where the kernel is Reference or a row
    is split, by the formula as it stands. mask_BTS: B or 1. A query that sees no key gets zeros. The rest: `attend`."""
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    q_BTNH = q_BTNH * scale
    some_BT = mask_BTS.any(axis=-1)
    # softmax over nothing has no value, nor has its gradient
    mask_BTS = mask_BTS | ~some_BT[..., None]
    size = T
    if not isinstance(kernel, Reference) and sharding.ways("length") == 1:
        size = kernel.size if isinstance(kernel, Blocks) else _block_size(T)
    spans = tuple((start, min(start + size, T), 0, S) for start in range(0, T, size))
    masks = [mask_BTS[:, start:stop] for start, stop, _, _ in spans]
    if size < T and cap is None and (key is None or rate == 0):
        z_BTNH = block_attention.attend(spans, q_BTNH, k_BSKH, v_BSKH, masks)
    else:
        z_BTNH = _by_blocks(spans, masks, q_BTNH, k_BSKH, v_BSKH, None, cap, rate, key)
    return jnp.where(some_BT[..., None, None], z_BTNH, jnp.zeros((), z_BTNH.dtype))


def _block_size(length: int) -> int:
    """At most 16 blocks: each is compiled apart."""
    return max(128, -(-length // 16))


def _split_rows(q_BTNH, k_BTKH, v_BTKH, segments_BT, size: int, cap, window: int | None, parts: int, causal: bool):
    """Blocks of queries, where "sequence" splits the rows: each device has its own queries and gathers all keys. It
    reads keys after its block too, since which device it is is known only when it runs."""
    if segments_BT is None:
        segments_BT = jnp.ones(q_BTNH.shape[:2], jnp.int32)
    own_length = q_BTNH.shape[1] // parts

    def one_shard(q_BTNH, k_BSKH, v_BSKH, own_BT, all_BS):
        S = k_BSKH.shape[1]
        blocks = []
        for start in range(0, own_length, size):
            stop = min(start + size, own_length)
            positions_T = jax.lax.axis_index("sequence") * own_length + jnp.arange(start, stop)
            # as many keys as the block and its window can reach
            reach = S if window is None else min(S, window - 1 + stop - start)
            first = jnp.clip(positions_T[-1] + 1 - reach, 0, S - reach)
            k, v, segments = (jax.lax.dynamic_slice_in_dim(x, first, reach, axis=1) for x in (k_BSKH, v_BSKH, all_BS))
            mask_BTS = visible(positions_T[None], first + jnp.arange(reach), window, causal)
            mask_BTS = mask_BTS & (own_BT[:, start:stop, None] == segments[:, None])
            blocks.append(masked(q_BTNH[:, start:stop], k, v, mask_BTS, cap=cap))
        return jnp.concatenate(blocks, axis=1)

    def spec(x, *names) -> PartitionSpec:
        return sharding.partition(names, x.shape, dict(jax.sharding.get_abstract_mesh().shape))

    queries = spec(q_BTNH, "batch", "length", "heads", "head_dim")
    keys = spec(k_BTKH, "batch", None, "kv_heads", "head_dim")
    specs = (queries, keys, keys, spec(segments_BT, "batch", "length"), spec(segments_BT, "batch", None))
    return jax.shard_map(one_shard, in_specs=specs, out_specs=queries, check_vma=False)(
        q_BTNH, k_BTKH, v_BTKH, segments_BT, segments_BT
    )


def visible(positions_BT: jax.Array, slots_S: jax.Array, window: int | None, causal: bool = True) -> jax.Array:
    """(B, T, S): whether the query at a position sees the key of that slot, which stands at position `slot`."""
    distance_BTS = positions_BT[:, :, None] - slots_S
    if not causal:
        return jnp.ones(distance_BTS.shape, bool)
    return distance_BTS >= 0 if window is None else (distance_BTS >= 0) & (distance_BTS < window)


def masked(q_BTNH, k_BSKH, v_BSKH, mask_BTS, *, cap=None, bias_BNTS=None, rate: float = 0.0, key=None) -> jax.Array:
    """Attention of T queries, already scaled, over S keys where mask_BTS is True; each must see at least one. The rest
    as `attend`."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    weights_BKGTS = _weights(scores_BKGTS, mask_BTS, cap, bias_BNTS)
    if key is not None and rate > 0:
        keep = jax.random.bernoulli(key, 1 - rate, weights_BKGTS.shape)
        weights_BKGTS = jnp.where(keep, weights_BKGTS / (1 - rate), 0.0)
    z_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS.astype(v_BSKH.dtype), v_BSKH)
    return z_BTKGH.reshape(B, T, N, H)


def scores(q_BTNH, k_BSKH, mask_BTS, *, cap: float | None = None, bias_BNTS=None) -> jax.Array:
    """(B, N, T, S) in float32, as the softmax of `masked` has them: -inf where mask_BTS is False."""
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    return _seen(scores_BKGTS, mask_BTS, cap, bias_BNTS).reshape(B, N, T, S)


def mixed(pattern_BNTS, v_BSKH) -> jax.Array:
    """(B, T, N, H): the values by these weights."""
    B, N, T, S = pattern_BNTS.shape
    K, H = v_BSKH.shape[2:]
    weights_BKGTS = pattern_BNTS.reshape(B, K, N // K, T, S)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS.astype(v_BSKH.dtype), v_BSKH).reshape(B, T, N, H)


def over_segments(q_BTNH, keys, values, mask_BTS, *, cap: float | None = None, bias_BNTS=None) -> jax.Array:
    """As `masked`, over keys and values in several arrays (B, K, S_i, H) with S = sum of S_i (models/cache.py)."""
    B, T, N, H = q_BTNH.shape
    K = keys[0].shape[1]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores = [jnp.einsum("BTKGH,BKSH->BKGTS", q_BTKGH, k_BKSH, preferred_element_type=jnp.float32) for k_BKSH in keys]
    weights_BKGTS = _weights(jnp.concatenate(scores, axis=-1), mask_BTS, cap, bias_BNTS)
    cuts = np.cumsum([k_BKSH.shape[2] for k_BKSH in keys])[:-1]
    parts = [
        jnp.einsum("BKGTS,BKSH->BTKGH", part_BKGTS.astype(v_BKSH.dtype), v_BKSH)
        for part_BKGTS, v_BKSH in zip(jnp.split(weights_BKGTS, cuts, axis=-1), values, strict=True)
    ]
    return sum(parts[1:], parts[0]).reshape(B, T, N, H)


def _weights(scores_BKGTS: jax.Array, mask_BTS: jax.Array, cap: float | None, bias_BNTS: jax.Array | None):
    """The softmax, in float32: bfloat16 loses the tail of long contexts."""
    return jax.nn.softmax(_seen(scores_BKGTS, mask_BTS, cap, bias_BNTS), axis=-1)


def _seen(scores_BKGTS: jax.Array, mask_BTS: jax.Array, cap: float | None, bias_BNTS: jax.Array | None):
    if bias_BNTS is not None:
        _, K, G, T, S = scores_BKGTS.shape
        scores_BKGTS = scores_BKGTS + bias_BNTS.reshape(-1, K, G, T, S)
    if cap is not None:
        scores_BKGTS = cap * jnp.tanh(scores_BKGTS / cap)
    return jnp.where(mask_BTS[:, None, None], scores_BKGTS, -jnp.inf)
