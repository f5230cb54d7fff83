"""BERT and RoBERTa beside transformers' own: hidden states, logits of masked tokens, the pooled output; both ways."""

from functools import partial

import jax
import numpy as np
import pytest
import torch
import transformers

from lmjax.data.batch import Batch
from lmjax.interop.read import load_params, open_checkpoint
from lmjax.interop.write import export
from lmjax.models import transformer
from lmjax.tasks.masked_lm import MaskedLM

SETTINGS = {
    "vocab_size": 97, "num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 44,
    "layer_norm_eps": 3e-3, "max_position_embeddings": 60, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
# name: (class of the whole, class of the head alone, settings)
MODELS = {
    "bert": (transformers.BertForPreTraining, transformers.BertForMaskedLM, {"type_vocab_size": 3, "pad_token_id": 0}),
    "roberta": (
        transformers.RobertaForMaskedLM, transformers.RobertaForMaskedLM,
        {"type_vocab_size": 2, "pad_token_id": 3, "hidden_act": "gelu_new"},
    ),
}  # fmt: skip
LENGTHS = np.array([40, 25])


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """(directory, the original with its attention peaked, ids, types, which tokens there are)."""
    name = request.param
    directory = tmp_path_factory.mktemp(name) / "original"
    whole, _, more = MODELS[name]
    config = whole.config_class(**SETTINGS, **more, attn_implementation="eager")
    torch.manual_seed(5)
    model = whole(config)
    if name == "roberta":
        model.roberta.pooler = transformers.models.roberta.modeling_roberta.RobertaPooler(config)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            noise = torch.randn(weight.shape)
            if weight.dim() >= 2:
                weight.copy_(noise * (0.8 if "embeddings" in path else 1.6 / weight.shape[-1] ** 0.5))
            else:
                weight.add_(0.3 * noise)
    model.eval().save_pretrained(directory)
    rng = np.random.default_rng(3)
    here = np.arange(40) < LENGTHS[:, None]
    # no padding's id among the tokens, and nothing else behind them
    ids = np.where(here, rng.integers(4, 97, here.shape), more["pad_token_id"]).astype(np.int32)
    return directory, model, ids, rng.integers(0, more["type_vocab_size"], here.shape), here


def theirs(model, ids, types, here):
    """(hidden states, logits, pooled)."""
    inputs = {"input_ids": ids, "token_type_ids": types, "attention_mask": here}
    inputs = {name: torch.tensor(np.asarray(x, np.int64)) for name, x in inputs.items()}
    with torch.no_grad():
        hidden = model.base_model(**inputs).last_hidden_state
        out = model(**inputs)
        pooled = model.base_model.pooler(hidden) if getattr(model.base_model, "pooler", None) is not None else None
    logits = out.prediction_logits if "prediction_logits" in out else out.logits
    return [None if x is None else x.numpy() for x in (hidden, logits, pooled)]


def ours(directory, ids, types, here, *, stacked):
    found = open_checkpoint(directory)
    return _ours(found.cfg, load_params(found, stacked=stacked), ids, types, here)


@partial(jax.jit, static_argnums=0)
def _ours(cfg, params, ids, types, here):
    positions_BT = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    hidden, _ = transformer.hidden(cfg, params, ids, positions_BT, here.astype(np.int32), types_BT=types)
    pooled = transformer.pooled(cfg, params, hidden) if cfg.pooler else None
    return hidden, transformer.masked_logits(cfg, params, hidden), pooled


def assert_near(found, expected, here):
    for name, x, y in zip(("hidden", "logits", "pooled"), found, expected, strict=True):
        assert (x is None) == (y is None), name
        if x is not None:
            x, y = (np.asarray(z) if name == "pooled" else np.asarray(z)[here] for z in (x, y))
            np.testing.assert_allclose(x, y, atol=1e-5 * max(1.0, np.abs(y).max()), err_msg=name)


@pytest.mark.parametrize("stacked", [True, False])
def test_hidden_states_logits_and_the_pooled_output(pair, stacked):
    directory, model, ids, types, here = pair
    expected = theirs(model, ids, types, here)
    assert all(np.abs(x).max() > limit for x, limit in zip(expected, (2, 3, 0.5), strict=True))
    assert_near(ours(directory, ids, types, here, stacked=stacked), expected, here)


def test_the_way_back(pair, tmp_path):
    """What transformers makes of what is written, and nothing is missing there."""
    directory, model, ids, types, here = pair
    found = open_checkpoint(directory)
    export(found.cfg, load_params(found, stacked=True), None, tmp_path / "out")
    again, report = MODELS[found.family.model_type][1].from_pretrained(
        tmp_path / "out", attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    expected = theirs(model, ids, types, here)[:2]
    assert_near([*theirs(again.eval(), ids, types, here)[:2], None], [*expected, None], here)
    base = type(again.base_model).from_pretrained(tmp_path / "out", add_pooling_layer=True)
    np.testing.assert_array_equal(
        base.pooler.dense.weight.detach().numpy(), model.base_model.pooler.dense.weight.detach().numpy()
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("layer_norm_eps", 1e-12), ("hidden_act", "relu"), ("num_attention_heads", 2)],
)
def test_a_setting_that_were_ignored_would_be_seen(pair, name, value):
    directory, model, ids, types, here = pair
    other = type(model.config)(**{**model.config.to_dict(), name: value, "attn_implementation": "eager"})
    changed = type(model)(other)
    changed.load_state_dict(model.state_dict(), strict=False)
    hidden = theirs(changed.eval(), ids, types, here)[0]
    assert np.abs(hidden - np.asarray(ours(directory, ids, types, here, stacked=True)[0]))[here].max() > 1e-3


def test_the_loss_of_masked_tokens_and_its_gradient(pair):
    directory, model, ids, types, here = pair
    chosen = (np.random.default_rng(1).random(ids.shape) < 0.3) & here
    inputs = {"input_ids": ids, "token_type_ids": types, "attention_mask": here}
    logits = model(**{name: torch.tensor(np.asarray(x, np.int64)) for name, x in inputs.items()})
    logits = logits.prediction_logits if "prediction_logits" in logits else logits.logits
    targets = torch.tensor(np.where(chosen, ids, -100).astype(np.int64))
    model.zero_grad()
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 97), targets.reshape(-1), reduction="sum")
    loss.backward()
    found = open_checkpoint(directory)
    positions_BT = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)

    def total(params):
        hidden, _ = transformer.hidden(found.cfg, params, ids, positions_BT, here.astype(np.int32), types_BT=types)
        log_p = jax.nn.log_softmax(transformer.masked_logits(found.cfg, params, hidden))
        return -(jax.numpy.take_along_axis(log_p, ids[..., None], -1)[..., 0] * chosen).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(load_params(found, stacked=True))
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    embeddings = model.base_model.embeddings
    for x, y in (
        (gradient["embedding"], embeddings.word_embeddings.weight),
        (gradient["positions"], embeddings.position_embeddings.weight),
        (gradient["token_types"], embeddings.token_type_embeddings.weight),
        (gradient["embedding_norm"]["scale"], embeddings.LayerNorm.weight),
    ):
        y = y.grad.numpy()
        if x is gradient["embedding"]:
            # PyTorch gives the padding's row no gradient as an input
            x, y = np.asarray(x)[4:], y[4:]
        np.testing.assert_allclose(x, y, atol=1e-4 * np.abs(y).max())


def test_the_task_has_the_loss_of_their_labels(pair):
    """What `labels` gives in their masked models, where -100 is not predicted."""
    directory, _, ids, _, here = pair
    found, task = open_checkpoint(directory), MaskedLM(share=0.3)
    theirs = MODELS[found.family.model_type][1].from_pretrained(directory, attn_implementation="eager").eval()
    chosen, rng = np.zeros(ids.shape, bool), np.random.default_rng(1)
    for row, length in enumerate(LENGTHS):
        chosen[row, rng.permutation(length)[: task.predicted(length)]] = True
    read = np.where(chosen, rng.integers(4, 97, ids.shape), ids).astype(np.int32)
    inputs = {"input_ids": read, "attention_mask": here, "labels": np.where(chosen, ids, -100)}
    with torch.no_grad():
        expected = theirs(**{name: torch.tensor(np.asarray(x, np.int64)) for name, x in inputs.items()}).loss
    positions_BT = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    batch = Batch(read, positions_BT, here.astype(np.int32), ids, chosen.astype(np.float32))
    params = load_params(found, stacked=True)
    both = lambda p: (task.training_loss(found.cfg, p, batch, None), task.held_out_loss(found.cfg, p, batch))
    for loss in jax.jit(both)(params):
        np.testing.assert_allclose(loss.mean(), expected.numpy(), rtol=1e-5)
        assert loss.weight == chosen.sum()
