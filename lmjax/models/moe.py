"""A mixture of experts (arXiv:2401.04088, section 2.1): a token goes through the few experts that a router chooses.

E experts, of which a token chooses C; R tokens, and A = R C assignments of a token to an expert.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.models.feedforward import Experts, activate
from lmjax.models.tap import tap
from lmjax.sharding import constrain, partition, ways, weight

if TYPE_CHECKING:
    from lmjax.models.config import ModelConfig


class Routing(NamedTuple):
    """How a layer's router treats a microbatch, over all devices. balance, z: see `routing`. dropped: the share of
    assignments for which there was no capacity."""

    balance: jax.Array
    z: jax.Array
    dropped: jax.Array


def route(logits_BTE: jax.Array, chosen: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(probability_BTE, weights_BTC, experts_BTC): the C most probable experts of each token, in falling order, and
    their probabilities, made to sum to 1."""
    # float32: two experts of nearly equal probability must not change places
    probability_BTE = jax.nn.softmax(logits_BTE.astype(jnp.float32), axis=-1)
    weights_BTC, experts_BTC = jax.lax.top_k(probability_BTE, chosen)
    return probability_BTE, weights_BTC / weights_BTC.sum(-1, keepdims=True), experts_BTC


def routing(logits_BTE, probability_BTE, experts_BTC, counted_BT, dropped) -> Routing:
    """The losses of a router, as means over the tokens that count.

    balance: E sum_e f_e P_e, with f_e the share of assignments that chose expert e and P_e the mean of its probability
    (Switch Transformer, arXiv:2101.03961, eq. 4 to 6, with top-k's assignments for the one there). 1 where all are
    equal, E where one expert gets all. transformers' figure for Mixtral is C times this. Only P has a gradient.
    z: the mean of (log sum exp of the logits)^2 (ST-MoE, arXiv:2202.08906, eq. 5).
    """
    E = logits_BTE.shape[-1]
    counted = counted_BT.astype(jnp.float32)
    tokens = jnp.maximum(counted.sum(), 1.0)
    chosen_BTE = jax.nn.one_hot(experts_BTC, E).mean(axis=2)
    share_E = jnp.einsum("BTE,BT->E", chosen_BTE, counted) / tokens
    mean_E = jnp.einsum("BTE,BT->E", probability_BTE, counted) / tokens
    log_z_BT = jax.nn.logsumexp(logits_BTE.astype(jnp.float32), axis=-1)
    return Routing(E * jnp.sum(share_E * mean_E), jnp.sum(log_z_BT**2 * counted) / tokens, dropped)


def places(experts_BTC: jax.Array, counted_BT: jax.Array, count: int) -> jax.Array:
    """For each assignment how many go before it to the same expert. All tokens' first choices go before all second
    ones (GShard, arXiv:2006.16668, algorithm 1), and of these the earlier token of the earlier row."""
    taken_CBTE = jnp.moveaxis(jax.nn.one_hot(experts_BTC, count, dtype=jnp.int32), 2, 0) * counted_BT[..., None]
    # in three steps, so that what crosses devices is one number a row, choice and expert
    within_CBTE = jnp.cumsum(taken_CBTE, axis=2) - taken_CBTE
    row_CBE = taken_CBTE.sum(axis=2)
    rows_CBE = jnp.cumsum(row_CBE, axis=1) - row_CBE
    choice_CE = row_CBE.sum(axis=1)
    before_CBTE = within_CBTE + (rows_CBE + (jnp.cumsum(choice_CE, axis=0) - choice_CE)[:, None])[:, :, None]
    return jnp.moveaxis(jnp.sum(before_CBTE * taken_CBTE, axis=-1), 0, 2)


class ExpertsLayer(nn.Module):
    """(B, T, D) to (B, T, D), and how the tokens were routed. counted_BT: which tokens the router's losses count, in
    training; None otherwise, and then there are no losses and nothing is dropped."""

    cfg: "ModelConfig"

    @nn.compact
    def __call__(self, x_BTD: jax.Array, counted_BT: jax.Array | None) -> tuple[jax.Array, Routing | None]:
        cfg, ff = self.cfg, self.cfg.feedforward
        D, E, F = cfg.width, ff.count, cfg.hidden

        def matrix(name, shape, axes, std=cfg.init_std):
            return weight(self, name, nn.initializers.normal(std), axes, shape).astype(x_BTD.dtype)

        logits_BTE = tap(self, "hook_router", x_BTD @ matrix("router", (D, E), ("embed", None)))
        probability_BTE, weights_BTC, experts_BTC = route(logits_BTE, ff.chosen)
        matrices = [matrix(name, (E, D, F), ("experts", "embed", "mlp")) for name in ("gate", "up")]
        matrices.append(matrix("down", (E, F, D), ("experts", "mlp", "embed"), cfg.residual_std))
        dropped = jnp.zeros(())
        if counted_BT is None or ff.capacity is None:
            y_BTD = dropless(ff, x_BTD, weights_BTC, experts_BTC, matrices)
        else:
            y_BTD, dropped = within_capacity(ff, x_BTD, weights_BTC, experts_BTC, counted_BT, matrices)
        found = None
        if counted_BT is not None:
            found = routing(logits_BTE, probability_BTE, experts_BTC, counted_BT, dropped)
        return constrain(y_BTD, "batch", "length", "embed"), found


def dropless(ff: Experts, x_BTD, weights_BTC, experts_BTC, matrices) -> jax.Array:
    """Every token through all experts that it chose. Over a mesh, the tokens of the devices along "expert" are brought
    together, each device takes those that chose its own experts, and the sums go back to where the tokens were.
    A layer's weights are whole on a device as far as "fsdp" and "sequence" split them; "expert" and "tensor" stay."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _own_experts(ff, x_BTD, weights_BTC, experts_BTC, matrices, None)
    sizes = dict(mesh.shape)
    tokens = partition(("batch", "length", None), x_BTD.shape, sizes, strict=False)
    up = partition(("experts", "embed", "mlp"), matrices[0].shape, sizes)
    down = partition(("experts", "mlp", "embed"), matrices[2].shape, sizes)
    experts, embed, mlp = (_split(axes, sizes) for axes in up)
    # rows that do not divide are on all devices already
    together = tuple(axis for axis in experts if axis in _split(tokens[0], sizes))

    def one_shard(x_BTD, weights_BTC, experts_BTC, gate_EDF, up_EDF, down_EFD):
        if together:
            x_BTD, weights_BTC, experts_BTC = (
                jax.lax.all_gather(x, together, axis=0, tiled=True) for x in (x_BTD, weights_BTC, experts_BTC)
            )
        matrices = [gate_EDF, up_EDF, down_EFD]
        if embed:
            matrices = [
                jax.lax.all_gather(x, embed, axis=axis, tiled=True) for x, axis in zip(matrices, (1, 1, 2), strict=True)
            ]
        first = jax.lax.axis_index(experts) * len(gate_EDF) if experts else None
        y_BTD = _own_experts(ff, x_BTD, weights_BTC, experts_BTC, matrices, first)
        if together:
            y_BTD = jax.lax.psum_scatter(y_BTD, together, scatter_dimension=0, tiled=True)
        elif experts:
            y_BTD = jax.lax.psum(y_BTD, experts)
        return jax.lax.psum(y_BTD, mlp) if mlp else y_BTD

    specs = (tokens, tokens, tokens, up, up, down)
    # rows that do not divide are equal on all devices, which JAX cannot know of gathered weights
    mapped = jax.shard_map(one_shard, in_specs=specs, out_specs=tokens, check_vma=False)
    return mapped(x_BTD, weights_BTC, experts_BTC, *matrices)


def _split(axes: tuple[str, ...] | str | None, sizes: dict[str, int]) -> tuple[str, ...]:
    """Those of an entry's axes of the mesh that really split."""
    return tuple(axis for axis in ((axes,) if isinstance(axes, str) else axes or ()) if sizes[axis] > 1)


def _own_experts(ff: Experts, x_BTD, weights_BTC, experts_BTC, matrices, first) -> jax.Array:
    """The sum over the experts whose matrices these are, the first of which has that number; None: all there are.
    Assignments are sorted by expert, so that each expert is one product of its own tokens."""
    gate_EDF, up_EDF, down_EFD = matrices
    C, E = ff.chosen, len(gate_EDF)
    x_RD, experts_A = x_BTD.reshape(-1, x_BTD.shape[-1]), experts_BTC.reshape(-1)
    if first is not None:
        experts_A = experts_A - first
        experts_A = jnp.where((experts_A >= 0) & (experts_A < E), experts_A, E)
    order_A = jnp.argsort(experts_A, stable=True)
    sizes_E = jnp.bincount(experts_A, length=E)

    def own(x_AI):
        """0 in the rows of others' experts, about which ragged_dot promises nothing, and in their gradients."""
        return x_AI if first is None else jnp.where((jnp.arange(len(x_AI)) < sizes_E.sum())[:, None], x_AI, 0)

    x_AD = own(x_RD[order_A // C])
    gate_AF, up_AF = jax.lax.ragged_dot(x_AD, gate_EDF, sizes_E), jax.lax.ragged_dot(x_AD, up_EDF, sizes_E)
    y_AD = own(jax.lax.ragged_dot(activate(gate_AF, ff.activation) * up_AF, down_EFD, sizes_E))
    y_AD = y_AD * weights_BTC.reshape(-1)[order_A, None].astype(y_AD.dtype)
    return jnp.zeros_like(x_RD).at[order_A // C].add(y_AD).reshape(x_BTD.shape)


def within_capacity(ff: Experts, x_BTD, weights_BTC, experts_BTC, counted_BT, matrices) -> tuple[jax.Array, jax.Array]:
    """(y_BTD, dropped): each expert takes K = ceil(capacity C R / E) assignments of the R places of the microbatch, in
    the order of `places`, the rest adds nothing. Padding takes no room. All experts are one batched product
    of buffers (E, K, D), which lie over all devices; the compiler moves the tokens."""
    B, T, D = x_BTD.shape
    E, R = ff.count, B * T
    K = min(math.ceil(ff.capacity * ff.chosen * R / E), R)
    slots = -(-K // ways("capacity")) * ways("capacity")
    place_BTC = places(experts_BTC, counted_BT, E)
    kept_BTC = (place_BTC < K) & counted_BT[..., None]
    slot_A = jnp.where(kept_BTC, experts_BTC * slots + place_BTC, E * slots).reshape(-1)

    def buffer(values_A):
        return jnp.zeros(E * slots, values_A.dtype).at[slot_A].add(values_A, mode="drop")

    # empty slots hold token 0 with weight 0
    token_S = buffer(jnp.repeat(jnp.arange(R), ff.chosen))
    weight_S = buffer(weights_BTC.reshape(-1)).astype(x_BTD.dtype)
    gate_EDF, up_EDF = (constrain(x, "experts", None, "mlp") for x in matrices[:2])
    down_EFD = constrain(matrices[2], "experts", "mlp", None)
    x_EKD = constrain(x_BTD.reshape(R, D)[token_S].reshape(E, slots, D), "experts", "capacity", None)
    gate_EKF = activate(jnp.einsum("EKD,EDF->EKF", x_EKD, gate_EDF), ff.activation)
    h_EKF = constrain(gate_EKF * jnp.einsum("EKD,EDF->EKF", x_EKD, up_EDF), "experts", "capacity", "mlp")
    y_EKD = constrain(jnp.einsum("EKF,EFD->EKD", h_EKF, down_EFD), "experts", "capacity", None)
    y_SD = y_EKD.reshape(-1, D) * weight_S[:, None]
    y_BTD = jnp.zeros((R, D), x_BTD.dtype).at[token_S].add(y_SD).reshape(B, T, D)
    assignments = jnp.maximum(counted_BT.sum() * ff.chosen, 1)
    return y_BTD, 1 - kept_BTC.sum() / assignments
