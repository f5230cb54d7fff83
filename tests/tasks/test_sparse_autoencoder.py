"""A sparse autoencoder reads the model's own vectors; a perfect one recovers everything, an empty one nothing."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lmjax
import run as command_line
from lmjax import trained
from lmjax.errors import UserError
from lmjax.evaluate.held_out import compile_loss
from lmjax.interop.write import export
from lmjax.interpret import capture
from lmjax.interpret.features import contexts, features, reconstructed
from lmjax.models import autoencoder, transformer
from lmjax.models.autoencoder import Autoencoder
from lmjax.optim import AdamW
from lmjax.plan import counts
from lmjax.tasks.sparse_autoencoder import SparseAutoencoder, site_of
from lmjax.tokenizers import Bytes
from lmjax.train import loop
from lmjax.trees import count, named_leaves
from tests import tiny
from tests.interpret.small import model_of
from tests.train.test_resume import losses, metrics, stop_at

SITE = "blocks.1.hook_resid_mid"
CFG = tiny.llama(layers=3, autoencoder=Autoencoder(site=SITE, features=64))
TASK = SparseAutoencoder(l1=0.5)


@pytest.fixture(scope="module")
def params():
    return model_of(CFG, apart=False).params


@pytest.fixture(scope="module")
def batch():
    return tiny.batch(CFG, 4, ragged=True)


def perfect(params):
    """x = relu(x) - relu(-x): 2 D features."""
    both = jnp.concatenate([jnp.eye(32), -jnp.eye(32)])
    own = {"encoder": {"kernel": both.T, "bias": jnp.zeros(64)}, "decoder": {"kernel": both, "bias": jnp.zeros(32)}}
    return params | {"autoencoder": own}


# one program for all
LOSS_OF = compile_loss(tiny.experiment("unused", model=CFG, task=TASK, init_from="base"))


def summary(params, batch):
    loss = LOSS_OF(params, batch)
    return TASK.summary(jax.device_get(loss.figures)), loss


def test_a_perfect_one_recovers_everything_and_an_empty_one_nothing(params, batch):
    found, loss = summary(perfect(params), batch)
    assert found["explained"] == pytest.approx(1, abs=1e-5)
    assert found["model_loss_reconstructed"] == pytest.approx(found["model_loss"], rel=1e-5)
    assert found["recovered"] == pytest.approx(1, abs=1e-3)
    # of x and -x one is above 0
    assert found["active"] == pytest.approx(32)
    assert found["dead"] == 0
    # directions of length 1: the penalty is the L1 norm of x itself
    standard, _, _ = autoencoder.standardised(site_of(CFG, params, batch))
    penalty = (np.abs(standard).sum(-1) * batch.weights_BT).sum() * TASK.l1 / 32
    np.testing.assert_allclose(loss.total, penalty, rtol=1e-5)
    np.testing.assert_allclose(loss.weight, batch.weights_BT.sum())
    empty = jax.tree.map(jnp.zeros_like, params["autoencoder"])
    found, loss = summary(params | {"autoencoder": empty}, batch)
    assert (found["active"], found["dead"]) == (0, 1)
    assert float(loss.mean()) == pytest.approx(1, abs=1e-5)


def test_the_figures_by_hand(params, batch):
    found, _ = summary(params, batch)
    model = model_of(CFG)
    counted = np.asarray(batch.weights_BT, bool)
    x_BTD, again_BTD = (np.asarray(x, np.float64) for x in reconstructed(model, batch.tokens_BT))
    x, again = x_BTD[counted], again_BTD[counted]
    explained = 1 - np.square(x - again).sum() / np.square(x - x.mean(0)).sum()
    assert found["explained"] == pytest.approx(explained, abs=1e-5)
    active = np.asarray(features(model, batch.tokens_BT))[counted] > 0
    assert found["active"] == pytest.approx(active.sum(1).mean())
    assert found["dead"] == (~active.any(0)).mean()
    for name, value in (("", x_BTD), ("_reconstructed", again_BTD), ("_zeroed", np.zeros(()))):
        logits = capture(model, batch.tokens_BT, "logits", patches={SITE: value.astype(np.float32)})["logits"]
        nats = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), batch.targets_BT[..., None], -1)[..., 0]
        assert found[f"model_loss{name}"] == pytest.approx(nats[counted].mean(), rel=1e-5)


def test_the_site_is_the_whole_models_though_no_layer_above_is_computed(params, batch):
    found = jax.jit(site_of, static_argnums=0)(CFG, params, batch)
    whole = capture(model_of(CFG), batch.tokens_BT, SITE)[SITE]
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_only_its_own_parameters_are_trained_and_k_features_are_kept(params, batch):
    exp = tiny.experiment("unused", model=CFG, task=TASK, init_from="base")
    ours, _ = trained.split(exp, params)
    names = {f"autoencoder/{side}/{part}" for side in ("encoder", "decoder") for part in ("kernel", "bias")}
    assert {path for path, _ in named_leaves(ours)} == names
    gradient = jax.jit(jax.grad(lambda p: TASK.training_loss(CFG, p, batch, None).total))(params)
    moving = {path for path, x in named_leaves(gradient) if np.abs(x).max() > 0}
    assert moving == names
    few = replace(CFG, autoencoder=replace(CFG.autoencoder, k=3))
    x_BTD = autoencoder.standardised(site_of(CFG, params, batch))[0]
    all_of_them, kept = autoencoder.features(CFG, params, x_BTD), autoencoder.features(few, params, x_BTD)
    assert ((kept > 0).sum(-1) == 3).all()
    np.testing.assert_array_equal(np.sort(kept)[..., -3:], np.sort(all_of_them)[..., -3:])


def test_the_plan_counts_what_is_computed(params):
    """Forward of the two layers up to the site, forward and backward of the autoencoder."""
    exp = tiny.experiment("unused", model=replace(CFG, tied=True), task=TASK, init_from="base")
    own, blocks = count(params["autoencoder"]), count(params["blocks"])
    attention = 12 * CFG.heads * CFG.head_width * CFG.layers * CFG.context
    found = counts.trained_flops_per_token(exp) - attention
    assert found == pytest.approx(6 * own + 2 * blocks * 2 / 3, rel=0.01)


def test_contexts_are_where_a_feature_is_most_active():
    """Of texts longer than the context too, each token in its own window."""
    model = model_of(replace(CFG, vocab=256))
    model.tokenizer = Bytes().build(lambda: [])
    texts = ["to be, or not to be: that is the question of it all", "a horse"]
    found = contexts(model, texts, of=[3, 40], top=2, around=4)
    windows = [texts[0][:32], texts[0][32:], texts[1]]
    for one, best in found.items():
        each = [np.asarray(features(model, window))[0, :, one] for window in windows]
        strongest = sorted((x.max() for x in each if x.max() > 0), reverse=True)[:2]
        np.testing.assert_allclose([context.activation for context in best], strongest, atol=1e-4)
        for context in best:
            text = texts[context.text]
            window = context.place // 32 * 32
            assert context.token == text[context.place]
            assert context.before == text[max(window, context.place - 4) : context.place]
            assert context.after == text[context.place + 1 : min(window + 32, context.place + 5)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Autoencoder(site="blocks.1.attn.hook_z", features=8), "expected blocks.N. with hook_resid_pre"),
        (lambda: Autoencoder(site=SITE, features=0), "autoencoder.features is 0"),
        (lambda: Autoencoder(site=SITE, features=8, k=9), "autoencoder.k is 9; expected 1 to 8"),
        (lambda: replace(CFG, layers=1), "expected a block below 1"),
        (lambda: SparseAutoencoder(l1=-1.0), "l1 is -1.0"),
        (lambda: tiny.experiment("unused", model=CFG, task=TASK), "needs init_from"),
        (lambda: tiny.experiment("unused", task=TASK, init_from="base"), "expected both, or neither"),
        (lambda: trained.parts(tiny.experiment("unused", model=CFG, task=TASK, init_from="base", freeze=("*",))),
         "expected no freeze and no adapter"),
        (lambda: features(SimpleNamespace(cfg=tiny.gpt2(), path="m"), np.zeros((1, 3), np.int32)), "has no sparse autoencoder"),
        (lambda: contexts(SimpleNamespace(cfg=CFG, tokenizer=None, path="m"), "text"), "expected a tokenizer, and at least one text"),
    ],
)  # fmt: skip
def test_what_a_user_gets_wrong_is_one_line(make, message):
    with pytest.raises((ValueError, UserError), match=message):
        make()


def test_a_run_goes_on_without_its_base_and_holds_it_as_it_was(one_device_here, tmp_path, monkeypatch, capsys):
    """So it needs nothing beside itself, and every verb sees the base in it."""
    monkeypatch.setattr(loop, "environment", dict)
    (tmp_path / "text.txt").write_text(tiny.text(3_000), encoding="utf-8")
    short = {"evaluate_every": 4, "checkpoint_every": 4, "sample_every": 4, "microbatches": 1}
    base = tiny.experiment(tmp_path / "text.txt", steps=1, **short)
    body = replace(base.model, vocab=258, dropout=0.0)
    params = transformer.init_params(body, jax.random.key(7))
    export(body, params, None, tmp_path / "base")
    cfg = replace(body, autoencoder=Autoencoder(site="blocks.0.hook_mlp_out", features=24))
    exp = replace(base, model=cfg, task=TASK, init_from=str(tmp_path / "base"), optimizer=AdamW(), steps=4)
    stop_at(monkeypatch, 2)
    with pytest.raises(loop.Stopped):
        loop.train(exp, tmp_path / "run")
    (tmp_path / "base").rename(tmp_path / "gone")
    loop.train(exp, tmp_path / "run")
    assert [m[0] for m in losses(tmp_path / "run")] == [1, 2, 3, 4]
    assert {"explained", "active", "recovered"} < metrics(tmp_path / "run")[-1].keys()
    model, before = lmjax.load(tmp_path / "run"), transformer.apart(params)
    rest = {path: x for path, x in named_leaves(model.params) if not path.startswith("autoencoder/")}
    assert rest.keys() == dict(named_leaves(before)).keys()
    for path, x in named_leaves(before):
        np.testing.assert_array_equal(rest[path], x)
    assert features(model, "the model").shape == (1, 9, 24)
    assert command_line.main(["export", "--model", str(tmp_path / "run"), "--to", str(tmp_path / "out")]) == 0
    assert "its sparse autoencoder is no part of it" in capsys.readouterr().out
