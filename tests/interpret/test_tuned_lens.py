"""A tuned lens begins as the logit lens, comes closer to the model's answer on text that it was not trained on, and
lies in a file as it is."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.interpret import tuned_lens
from lmjax.interpret.capture import Read
from lmjax.interpret.lens import logit_lens
from lmjax.interpret.tuned_lens import TunedLens
from tests.interpret.small import model_of
from tests.interpret.test_capture import CONFIGS, ids


@pytest.fixture(scope="module")
def model():
    return model_of(CONFIGS["gpt2"])


@pytest.fixture(scope="module")
def held_out(model):
    return Read(ids(model.cfg, rows=8, seed=7))


@pytest.fixture(scope="module")
def tuned(model):
    return tuned_lens.train(model, ids(model.cfg, rows=80), steps=60, rate=3e-3)


def identity(cfg) -> TunedLens:
    return TunedLens(jnp.tile(jnp.eye(cfg.width), (cfg.layers, 1, 1)), jnp.zeros((cfg.layers, cfg.width)))


def test_it_comes_closer_to_the_models_answer_on_other_text(model, held_out, tuned):
    plain, closer = logit_lens(model, held_out), logit_lens(model, held_out, tuned=tuned)
    before, after = (lens.kl.mean(axis=(1, 2)) for lens in (plain, closer))
    assert (after[:-1] < 0.8 * before[:-1]).all()
    np.testing.assert_array_equal(closer.log_p[-1], plain.log_p[-1])
    np.testing.assert_allclose(tuned_lens.distances(model, held_out, tuned), after[:-1], rtol=1e-4)


def test_without_training_it_is_the_logit_lens(model, held_out):
    plain, same = (logit_lens(model, held_out, tuned=tuned) for tuned in (None, identity(model.cfg)))
    for name in ("log_p", "own_log_p", "entropy", "kl"):
        np.testing.assert_allclose(getattr(same, name), getattr(plain, name), atol=1e-6)


def test_a_row_that_training_made_worse_stays_as_it_was(model):
    """Steps as long as these lead nowhere from the row that is nearly the answer."""
    wild = tuned_lens.train(model, ids(model.cfg, rows=20), steps=3, rate=1e3)
    jax.tree.map(lambda x, none: np.testing.assert_array_equal(x[1], none[1]), wild, identity(model.cfg))


def test_it_is_repeatable_and_a_file_holds_it_as_it_is(model, tuned, tmp_path):
    again = tuned_lens.train(model, ids(model.cfg, rows=80), steps=60, rate=3e-3)
    tuned.save(tmp_path / "lens")
    jax.tree.map(np.testing.assert_array_equal, tuned_lens.load(tmp_path / "lens"), again)


def test_what_a_user_gets_wrong_is_one_line(model, held_out, tuned, tmp_path):
    other = model_of(replace(model.cfg, layers=1))
    with pytest.raises(UserError, match=r"a tuned lens of shape \(2, 32, 32\); expected \(1, 32, 32\), for m"):
        logit_lens(other, held_out, tuned=tuned)
    with pytest.raises(UserError, match=r"tuned_lens.safetensors: No such file"):
        tuned_lens.load(tmp_path)
    with pytest.raises(UserError, match="expected two or more"):
        tuned_lens.train(model, ids(model.cfg, rows=1))
    with pytest.raises(UserError, match="m is a model of labels"):
        tuned_lens.train(model_of(replace(model.cfg, outputs=2)), ids(model.cfg))
