"""Attribution patching is the slope of activation patching."""

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.interpret import Patch
from lmjax.interpret.attribution_patching import attribution_patching
from lmjax.interpret.capture import LOGITS, forward
from lmjax.interpret.patching import KINDS, LogitDifference, activation_patching, names_of
from lmjax.interpret.runs import pair
from tests import tiny
from tests.interpret.small import model_of
from tests.interpret.test_capture import ids

CFG = tiny.llama()
METRIC = LogitDifference(target=3, against=5, position=-2)


def test_it_equals_the_finite_difference():
    model, clean, corrupt = model_of(CFG), ids(CFG, 2, 6, seed=1), ids(CFG, 2, 6, seed=2)
    kinds = ("resid_mid", "mlp_out", "k", "z", "pattern")
    found = attribution_patching(model, clean, corrupt, METRIC, kinds=kinds, positions=False, scaled=False)
    names = tuple(site for kind in kinds for site in names_of(CFG, KINDS[kind]))
    both = pair(model, clean, corrupt, METRIC, names)

    @jax.jit
    def moved(step, chosen):
        added = {site: step * chosen[site] * (both.clean[site] - both.corrupt[site]) for site in names}
        patches = {site: Patch(added=x) for site, x in added.items()}
        return METRIC(forward(CFG, both.params, both.rows, (LOGITS,), patches)[LOGITS])

    step = 5e-3
    for kind in kinds:
        for layer, site in enumerate(names_of(CFG, KINDS[kind])):
            chosen = {name: jnp.float32(name == site) for name in names}
            slope = (moved(step, chosen) - moved(-step, chosen)) / (2 * step)
            np.testing.assert_allclose(found[kind][layer].sum(), slope, rtol=1e-3, atol=1e-3)


def test_of_small_changes_it_is_activation_patching():
    """Two tokens with nearly the same embedding: to the first order nothing is left out."""
    model, kind = model_of(CFG), "pattern"
    noise = 1e-3 * jax.random.normal(jax.random.key(5), (CFG.width,))
    model.params["embedding"] = jnp.asarray(model.params["embedding"]).at[7].set(model.params["embedding"][8] + noise)
    corrupt = ids(CFG, 1, 6, seed=2)
    corrupt[0, 2] = 8
    clean = np.where(corrupt == 8, 7, corrupt)
    exact = activation_patching(model, clean, corrupt, METRIC, kind=kind, say=lambda _: None)
    estimated = attribution_patching(model, clean, corrupt, METRIC, kinds=kind)[kind]
    assert estimated.shape == exact.shape
    assert np.abs(exact).max() > 0.05
    np.testing.assert_allclose(estimated, exact, atol=1e-2)
