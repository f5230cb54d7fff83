"""T5 v1.0 and v1.1 beside transformers' own: logits, loss, gradients; written, loaded there, and read again."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import lmjax
from lmjax.interop.family import normal
from lmjax.interop.read import load_params, open_checkpoint
from lmjax.interop.write import export
from lmjax.models import transformer
from tests.interop.directories import change_config
from tests.interop.test_directories import assert_same
from tests.parity.originals import T5, T5_MODELS, make_t5

LENGTHS = np.array([40, 25])


@pytest.fixture(scope="module", params=T5_MODELS)
def pair(request, tmp_path_factory):
    """(name, directory, the original, source, which of its tokens are there, the decoder's inputs)."""
    directory = tmp_path_factory.mktemp("t5") / "original"
    model = make_t5(request.param, directory)
    rng = np.random.default_rng(3)
    here = np.arange(40) < LENGTHS[:, None]
    source = np.where(here, rng.integers(2, 97, here.shape), 0).astype(np.int32)
    return request.param, directory, model, source, here, rng.integers(2, 97, (2, 30)).astype(np.int32)


def theirs(model, source, here, target):
    inputs = {"input_ids": source, "attention_mask": here, "decoder_input_ids": target}
    return model(**{name: torch.tensor(np.asarray(x, np.int64)) for name, x in inputs.items()}).logits


@partial(jax.jit, static_argnums=0)
def ours(cfg, params, source, here, target):
    places = [np.broadcast_to(np.arange(x.shape[1]), x.shape) for x in (source, target)]
    encoded = transformer.encode(cfg, params, source, places[0], here.astype(np.int32))
    hidden, _ = transformer.hidden(cfg, params, target, places[1], source=encoded)
    return transformer.logits(transformer.unembedding(cfg, params), hidden, cfg.logit_cap)


@pytest.mark.parametrize("stacked", [True, False])
def test_logits(pair, stacked):
    name, directory, model, source, here, target = pair
    found = open_checkpoint(directory)
    assert (found.cfg.tied, found.cfg.scaled_output) == ((name == "t5"),) * 2
    assert (found.cfg.encoder_layers, found.cfg.layers, found.start) == (2, 3, 0)
    with torch.no_grad():
        expected = theirs(model, source, here, target).numpy()
    assert np.abs(expected).max() > (1 if name == "t5" else 5)
    logits = ours(found.cfg, load_params(found, stacked=stacked), source, here, target)
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())


def test_a_setting_that_were_ignored_would_be_seen(pair):
    name, directory, model, source, here, target = pair
    found = open_checkpoint(directory)
    logits = np.asarray(ours(found.cfg, load_params(found, stacked=True), source, here, target))
    for setting, value in T5_MODELS[name][1].items():
        changes = T5_MODELS[name][0] | {setting: value}
        config = transformers.T5Config(**T5 | changes, attn_implementation="eager")
        changed = transformers.T5ForConditionalGeneration(config)
        if name == "t5_v1_1":
            changed.lm_head.weight = torch.nn.Parameter(torch.empty(97, 32))
        state = model.state_dict()
        if setting == "relative_attention_num_buckets":
            state = {n: torch.cat([x, x[:4]]) if "relative" in n else x for n, x in state.items()}
        changed.load_state_dict(state)
        with torch.no_grad():
            other = theirs(changed.eval(), source, here, target).numpy()
        assert np.abs(other - logits).max() > 1e-3 * np.abs(logits).max(), setting


def test_loss_and_gradient(pair):
    name, directory, model, source, here, target = pair
    labels = np.random.default_rng(8).integers(0, 97, target.shape)
    model.zero_grad()
    logits = theirs(model, source, here, target)
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 97), torch.tensor(labels).reshape(-1), reduction="sum")
    loss.backward()
    found = open_checkpoint(directory)

    def total(params):
        log_p = jax.nn.log_softmax(ours(found.cfg, params, source, here, target))
        return -jnp.take_along_axis(log_p, labels[..., None], -1).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(load_params(found, stacked=True))
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    named = dict(model.named_parameters())
    for entry in found.family.all_entries(found.cfg):
        leaf = gradient
        for part in entry.ours.split("/"):
            leaf = leaf[part]
        layered = "{layer}" in entry.theirs
        y = named[entry.theirs.format(layer=1)].grad.numpy()
        x = np.asarray(leaf[1] if layered else leaf)
        np.testing.assert_allclose(x, found.sizes.view(y, entry), atol=1e-4 * np.abs(y).max(), err_msg=entry.ours)


def test_the_way_back(pair, tmp_path):
    name, directory, model, source, here, target = pair
    found = open_checkpoint(directory)
    params = load_params(found, stacked=True)
    export(found.cfg, params, None, tmp_path / "out")
    again, report = transformers.T5ForConditionalGeneration.from_pretrained(
        tmp_path / "out", attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        expected, found_there = (theirs(m.eval(), source, here, target).numpy() for m in (model, again))
    np.testing.assert_array_equal(found_there, expected)
    twice = open_checkpoint(tmp_path / "out")
    assert normal(twice.cfg) == normal(found.cfg)
    assert_same(load_params(twice, stacked=True), params)
    assert again.generation_config.decoder_start_token_id == 0


def test_files_of_older_versions(pair, tmp_path):
    """The embedding three times, and a config without a word for the output's scale."""
    name, directory, model, source, here, target = pair
    tensors = load_file(directory / "model.safetensors")
    for copy in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        tensors[copy] = tensors["shared.weight"].clone()
    tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.zeros(8, 4)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    change_config(tmp_path, {"tie_word_embeddings": name == "t5"}, without=("scale_decoder_outputs",))
    assert "scale_decoder_outputs" not in json.loads((tmp_path / "config.json").read_text())
    found, now = open_checkpoint(tmp_path), open_checkpoint(directory)
    assert normal(found.cfg) == normal(now.cfg)
    assert_same(load_params(found, stacked=True), load_params(now, stacked=True))


def test_texts_through_a_directory_with_a_tokenizer(tmp_path):
    """Source and answer by transformers' T5 tokenizer, which ends a source with EOS; greedy and by beams; the loss."""
    pieces = [
        "<pad>",
        "</s>",
        "<unk>",
        "\u2581",
        *"abcdefghijklmnopqrstuvwxyz.",
        "\u2581the",
        "\u2581is",
        "good",
        "that",
    ]
    tokenizer = transformers.T5Tokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=9)
    model = make_t5("t5_v1_1", tmp_path, num_layers=3, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(tmp_path)
    text = "that is the good one."
    inputs = tokenizer(text, return_tensors="pt")
    assert inputs.input_ids[0, -1] == 1
    ours = lmjax.load(tmp_path)
    for settings in ({}, {"num_beams": 3, "length_penalty": 0.6}):
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False, **settings)
        expected = tokenizer.decode(ids[0], skip_special_tokens=True)
        more = {"beams" if name == "num_beams" else name: value for name, value in settings.items()}
        assert ours.generate(text, max_new_tokens=12, **more) == expected
    labels = tokenizer("a good one", return_tensors="pt").input_ids
    with torch.no_grad():
        loss = model(**inputs, labels=labels).loss.item()
    assert ours("a good one", source=text).loss == pytest.approx(loss, rel=1e-5)
