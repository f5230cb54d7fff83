"""Attribution patching (Nanda, "Attribution Patching: Activation Patching At Industrial Scale", 2023;
arXiv:2310.10348): activation patching to the first order, of all sites by two forward passes and a backward one."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lmjax.batching import Text
from lmjax.interpret.attribution import check_slopes
from lmjax.interpret.capture import LOGITS, Model, Read, forward
from lmjax.interpret.patching import Kind, kind_of, names_of
from lmjax.interpret.runs import Metric, pair
from lmjax.models.tap import Patch


def attribution_patching(
    model: Model, clean: Text | jax.Array | Read, corrupt: Text | jax.Array | Read, metric: Metric, *,
    kinds: str | Sequence[str] = ("resid_pre", "attn_out", "mlp_out", "z"), positions: bool = True, scaled: bool = True,
) -> dict[str, jax.Array]:  # fmt: skip
    """Of each kind what `activation_patching` gives, estimated: the metric's gradient by the activation, in the corrupt
    run, times the clean run's activation less the corrupt one's. Arguments, shapes and errors are those of
    `activation_patching`, and UserError for weights of int8; not scaled, it is the change of the metric."""
    check_slopes(model)
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    of = {name: kind_of(name) for name in kinds}
    names = {name: names_of(model.cfg, kind) for name, kind in of.items()}
    sites = tuple(dict.fromkeys(site for group in names.values() for site in group))
    both = pair(model, clean, corrupt, metric, sites)

    def moved(added):
        patches = {site: Patch(added=x) for site, x in added.items()}
        return metric(forward(model.cfg, both.params, both.rows, (LOGITS,), patches)[LOGITS])

    gradient = jax.jit(jax.grad(moved))({site: jnp.zeros_like(both.corrupt[site]) for site in sites})
    found = {}
    for name, kind in of.items():
        effects = [
            _summed(kind, gradient[site] * (both.clean[site] - both.corrupt[site]), positions) for site in names[name]
        ]
        found[name] = jnp.stack(effects)
    if not scaled:
        return found
    # of the metric at the corrupt run itself `scaled` is 0
    return {name: both.scaled(both.corrupt_metric + effects) for name, effects in found.items()}


def _summed(kind: Kind, effect: jax.Array, positions: bool) -> jax.Array:
    """Over all axes but those of positions and of heads, in this order."""
    kept = ([kind.position] if positions else []) + ([] if kind.head is None else [kind.head])
    effect = effect.sum(tuple(axis for axis in range(effect.ndim) if axis not in kept))
    return effect.T if kept != sorted(kept) else effect
