"""A part taken out is a model without its weights, or with what others have there."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.interpret import Patch, capture, patch
from lmjax.interpret.ablation import ablate
from lmjax.interpret.capture import LOGITS, Read
from lmjax.language_model import LanguageModel
from tests import tiny
from tests.interpret.small import model_of
from tests.interpret.test_capture import ids

CFG = tiny.gpt2()
TEXT, OVER = ids(CFG, 2, 12, seed=1), ids(CFG, 3, 12, seed=2)
Z = "blocks.1.attn.hook_z"


@pytest.fixture(scope="module")
def model():
    return model_of(CFG)


def test_heads_that_give_zero_are_a_slice_of_the_output_weights_that_is_zero(model):
    found = ablate(model, TEXT, {Z: [0, 2]})
    blocks = list(model.params["blocks"])
    blocks[1] = jax.tree.map(lambda x: x, blocks[1])
    kernel_NHD = blocks[1]["attention"]["out"]["kernel"]
    blocks[1]["attention"]["out"]["kernel"] = jnp.asarray(kernel_NHD).at[np.array([0, 2])].set(0.0)
    without = SimpleNamespace(**vars(model) | {"params": model.params | {"blocks": tuple(blocks)}})
    np.testing.assert_allclose(found.logits, capture(without, TEXT, LOGITS)[LOGITS], atol=1e-5)


def test_losses_are_the_models_own(model):
    found = ablate(model, TEXT, ["blocks.0.hook_mlp_out"])
    whole = LanguageModel(CFG, model.params, None, "m")(TEXT)
    assert found.whole_loss == pytest.approx(whole.loss, rel=1e-5)
    log_p = jax.nn.log_softmax(found.logits[:, :-1])
    nats = -np.take_along_axis(np.asarray(log_p), TEXT[:, 1:, None], -1)
    assert found.loss == pytest.approx(nats.mean(), rel=1e-5)
    assert abs(found.loss - found.whole_loss) > 0.01


def test_the_mean_is_over_all_tokens_of_all_texts(model):
    lengths = np.array([12, 7, 3])
    found = ablate(model, TEXT, [Z], how="mean", over=Read(OVER, lengths))
    z = np.asarray(capture(model, OVER, Z)[Z])
    mean = np.concatenate([z[i, :n] for i, n in enumerate(lengths)]).mean(0)
    np.testing.assert_allclose(found.logits, patch(model, TEXT, {Z: Patch(mean)}), atol=1e-5)


def test_a_drawn_text_stands_place_by_place(model):
    """The text itself changes nothing; of several each row has one, by the seed."""
    same = ablate(model, TEXT[:1], [Z], how="resample", over=TEXT[:1])
    np.testing.assert_allclose(same.logits, capture(model, TEXT[:1], LOGITS)[LOGITS], atol=1e-5)
    found = ablate(model, TEXT, {Z: None}, how="resample", over=OVER, seed=1)
    z = capture(model, OVER, Z)[Z]
    each = [[patch(model, TEXT, {Z: Patch(z[i])})[row] for i in range(3)] for row in range(2)]
    nearest = [[np.abs(found.logits[row] - one).max() < 1e-4 for one in each[row]] for row in range(2)]
    assert [sum(row) for row in nearest] == [1, 1]


def test_a_drawn_text_is_read_with_its_own_source():
    model = model_of(tiny.translator())
    rows, other = (Read(ids(model.cfg, 1, 6, seed=i), None, ids(model.cfg, 1, 4, seed=i + 2)) for i in (0, 1))
    found = ablate(model, rows, [Z], how="resample", over=other).logits
    np.testing.assert_allclose(found, patch(model, rows, {Z: capture(model, other, Z)[Z]}), atol=1e-5)


def test_what_a_user_gets_wrong_is_one_line(model):
    for how, over, message in (
        ("median", None, "how is 'median'; expected one of zero, mean, resample"),
        ("mean", None, "expected texts in `over`"),
        ("zero", OVER, "expected no texts in `over`"),
        ("resample", OVER[:, :5], "its longest text has 5 tokens; expected one of 12 or more"),
    ):
        with pytest.raises(UserError, match=message):
            ablate(model, TEXT, [Z], how=how, over=over)
    with pytest.raises(UserError, match="4 is not there; expected numbers from 0 to 3"):
        ablate(model, TEXT, {Z: [4]})
    with pytest.raises(UserError, match="did you mean blocks.1.attn.hook_z"):
        ablate(model, TEXT, ["blocks.1.attn.hook_zz"])
    with pytest.raises(UserError, match="attention weights of different texts have no mean"):
        ablate(model, TEXT, ["blocks.1.attn.hook_pattern"], how="mean", over=OVER)
