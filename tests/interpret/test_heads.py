"""A head that was built to continue repeated text is found, with the score that it must have."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.interpret.capture import Read, capture
from lmjax.interpret.heads import head_scores, induction_over_training, patterns, scores_of_text
from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Dense
from lmjax.models.norms import RMSNorm
from lmjax.train.loop import train
from tests import tiny
from tests.interpret.small import model_of
from tests.interpret.test_capture import CONFIGS, ids

V = T = H = 20
SHARP = 10.0


def induction_model():
    """Two layers of attention alone. The stream has three parts: the token, its position, and, from layer 0 on, the
    token before. There head 0 looks one position back and fetches the token; in layer 1 head 1 looks for where the
    token before is its own."""
    cfg = ModelConfig(
        layers=2, width=3 * V, heads=2, head_dim=H, context=T, vocab=V, norm=RMSNorm(), bias=False,
        feedforward=Dense(width=4, bias=False),
    )  # fmt: skip
    model = model_of(cfg, apart=False)
    params, one = model.params, np.eye(V, dtype=np.float32)
    token, position, before = (slice(i * V, (i + 1) * V) for i in range(3))
    attention = params["blocks"]["attention"]
    for part in (*attention.values(), *params["blocks"]["feedforward"].values()):
        part["kernel"][:] = 0.0
    for norm in (params["final_norm"], params["blocks"]["attention_norm"], params["blocks"]["feedforward_norm"]):
        norm["scale"][:] = 1.0
    params["embedding"][:] = np.concatenate([one, 0 * one, 0 * one], axis=1)
    params["positions"][:] = np.concatenate([0 * one, one, 0 * one], axis=1)
    q_LDNH, k_LDNH, v_LDNH = (attention[name]["kernel"] for name in ("q", "k", "v"))
    q_LDNH[0, position, 0] = SHARP * np.eye(V, k=-1)
    k_LDNH[0, position, 0] = SHARP * one
    v_LDNH[0, token, 0] = one
    attention["out"]["kernel"][0, 0, :, before] = one / 5
    q_LDNH[1, token, 1] = SHARP * one
    k_LDNH[1, before, 1] = SHARP * one
    # the first token has none before it, and fetched itself
    k_LDNH[1, position, 1][0] = -SHARP
    return model


def test_a_hand_built_induction_head_scores_1():
    scores = head_scores(induction_model(), rows=3)
    assert scores["induction"].shape == (2, 2)
    assert scores["induction"][1, 1] > 0.999 and scores["previous"][0, 0] > 0.999
    others = scores["induction"][0, 0], scores["induction"][0, 1], scores["induction"][1, 0]
    assert max(others) < 0.2 and scores["duplicate"].max() < 0.2


@pytest.fixture(scope="module")
def model():
    return model_of(replace(CONFIGS["llama"], layers=1))


def test_scores_are_the_mean_attention_to_the_right_places(model):
    """By hand, token by token; what fills up a row does not count."""
    tokens, lengths = np.array([[5, 7, 5, 9, 7, 5, 1, 1], [3, 3, 4, 2, 8, 0, 0, 0]]), (8, 5)
    rows = Read(tokens, np.array(lengths))
    found = {"previous": [], "duplicate": [], "induction": []}
    for row, length in enumerate(lengths):
        pattern_LNTS = patterns(model, rows, row=row)
        assert pattern_LNTS.shape == (1, 4, length, length)
        for t in range(length):
            same = [s for s in range(t) if tokens[row, s] == tokens[row, t]]
            right = {"previous": [t - 1] * (t > 0), "duplicate": same, "induction": [s + 1 for s in same]}
            for name, places in right.items():
                if places:
                    found[name].append(pattern_LNTS[:, :, t, places].sum(-1))
    for name, scores in scores_of_text(model, rows).items():
        np.testing.assert_allclose(scores, np.mean(found[name], axis=0), atol=1e-6)


def test_patterns_are_what_stands_at_their_site(model):
    tokens = ids(model.cfg)
    found = capture(model, tokens, "blocks.0.attn.hook_pattern")["blocks.0.attn.hook_pattern"]
    np.testing.assert_array_equal(patterns(model, tokens, row=1)[0], found[1])


def test_a_text_without_a_right_place_has_no_score_and_bos_is_not_repeated(model):
    assert np.isnan(scores_of_text(model, np.array([[1, 2, 3]]))["induction"]).all()
    tokenizer = SimpleNamespace(policy=SimpleNamespace(bos=0), vocab_size=97)
    spied = SimpleNamespace(**vars(model) | {"tokenizer": tokenizer})
    scores = head_scores(spied, tokens=5, rows=2)
    assert all(x.shape == (1, 4) and (x > 0).all() for x in scores.values())
    with pytest.raises(UserError, match="a text of 41 tokens; expected 1 to 32, the model's context"):
        head_scores(spied, tokens=20)
    with pytest.raises(UserError, match="4 rows of 0 tokens said twice: expected 1 or more"):
        head_scores(spied, tokens=0)


def test_scores_over_training_are_those_of_each_checkpoint(one_device_here, text_file, tmp_path):
    experiment = tiny.experiment(text_file, steps=4, checkpoint_every=2, evaluate_every=4, sample_every=4)
    train(experiment, tmp_path / "run")
    found = induction_over_training(tmp_path / "run")
    assert [step for step, _ in found] == [2, 4]
    assert all(x.shape == (2, 2) and np.isfinite(x).all() for _, x in found)
    assert np.abs(found[0][1] - found[1][1]).max() > 0
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty.*no checkpoint"):
        induction_over_training(tmp_path / "empty")
