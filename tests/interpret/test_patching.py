"""Patching everything is the other run, nothing is the run itself; many runs at one time are each as if alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.interpret import Patch, patch
from lmjax.interpret.capture import LOGITS, Read
from lmjax.interpret.patching import KINDS, LogitDifference, activation_patching, kind_of, names_of, patched
from lmjax.interpret.runs import pair
from tests import tiny
from tests.interpret.small import model_of
from tests.interpret.test_capture import ids

CFG = tiny.llama()
CLEAN, CORRUPT = ids(CFG, 1, 6, seed=1), ids(CFG, 1, 6, seed=2)
METRIC = LogitDifference(target=3, against=5)


@pytest.fixture(scope="module")
def model():
    return model_of(CFG)


def test_everything_patched_is_the_clean_run_and_nothing_the_corrupt_one(model):
    """Bitwise."""
    names = names_of(CFG, kind_of("resid_pre"))
    both = pair(model, CLEAN, CORRUPT, METRIC, names)
    values = [both.clean[name] for name in names]
    for everything, of in ((True, both.clean), (False, both.corrupt)):
        where_L = jnp.full((CFG.layers, 1, 1, 1), everything)
        np.testing.assert_array_equal(
            patched(CFG, both.params, both.rows, names, values, where_L), of[LOGITS], str(everything)
        )
    assert np.abs(both.clean[LOGITS] - both.corrupt[LOGITS]).max() > 0.1


@pytest.mark.parametrize("kind", ["k", "pattern"])
def test_many_runs_at_one_time_are_each_as_if_alone(model, kind):
    """chunk 5 does not divide the runs: those of the last chunk that are none are left out."""
    said = []
    found = activation_patching(model, CLEAN, CORRUPT, METRIC, kind=kind, scaled=False, chunk=5, say=said.append)
    of = KINDS[kind]
    clean = pair(model, CLEAN, CORRUPT, METRIC, names_of(CFG, of)).clean
    heads = {"k": CFG.kv_heads, "pattern": CFG.heads}[kind]
    assert found.shape == (CFG.layers, 6, heads)
    for place in np.ndindex(found.shape):
        site = f"blocks.{place[0]}.{of.site}"
        where = np.zeros(clean[site].shape, bool)
        index = [slice(None)] * where.ndim
        index[of.position] = place[1]
        index[of.head] = place[2]
        where[tuple(index)] = True
        alone = METRIC(patch(model, CORRUPT, {site: Patch(clean[site], where)}))
        np.testing.assert_allclose(found[place], alone, atol=1e-5)
    assert len(said) == 1
    assert f"= {found.size} runs, 5 at one time: about " in said[0]


def test_the_residual_stream_decides_all_and_scaled_runs_lie_from_0_to_1(model):
    whole = activation_patching(model, CLEAN, CORRUPT, METRIC, positions=False, say=lambda _: None)
    np.testing.assert_allclose(whole, [1.0, 1.0], atol=1e-5)
    last = activation_patching(model, CLEAN, CORRUPT, METRIC, kind="resid_post", say=lambda _: None)
    # behind the last layer the last position alone makes the last logits
    np.testing.assert_allclose(last[-1], [0, 0, 0, 0, 0, 1], atol=1e-5)


def test_what_a_user_gets_wrong_is_one_line(model):
    with pytest.raises(UserError, match="kind 'resid_prae': .* did you mean resid_pre"):
        activation_patching(model, CLEAN, CORRUPT, METRIC, kind="resid_prae")
    with pytest.raises(UserError, match="clean is 1 rows of 5 tokens and corrupt 1 rows of 6"):
        activation_patching(model, CLEAN[:, :5], CORRUPT, METRIC)
    ragged = Read(np.tile(CLEAN, (2, 1)), np.array([6, 4]))
    with pytest.raises(UserError, match="in rows of one length"):
        activation_patching(model, ragged, ragged, METRIC)
    with pytest.raises(UserError, match=r"the metric is -?\d.* of both texts"):
        activation_patching(model, CLEAN, CLEAN, METRIC, say=lambda _: None)
    with pytest.raises(UserError, match=r"the metric has shape \(1, 97\)"):
        activation_patching(model, CLEAN, CORRUPT, lambda logits_BTV: logits_BTV[:, -1])
    for wrong, message in (
        (LogitDifference(target=97, against=0), "target is 97; expected 0 to 96"),
        (LogitDifference(target=0, against=-1), "against is -1; expected 0 to 96"),
        (LogitDifference(target=0, against=1, position=6), "position is 6; expected -6 to 5"),
    ):
        with pytest.raises(UserError, match=message):
            activation_patching(model, CLEAN, CORRUPT, wrong)
    with pytest.raises(UserError, match="chunk is 0"):
        activation_patching(model, CLEAN, CORRUPT, METRIC, chunk=0)
    with pytest.raises(UserError, match="no such site"):
        activation_patching(model_of(tiny.neox()), CLEAN, CORRUPT, METRIC, kind="resid_mid")
