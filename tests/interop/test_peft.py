"""An adapter out as PEFT's directory and in again on its base; what these files cannot say. Beside PEFT itself:
tests/parity."""

import contextlib
import json
import shutil
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lmjax
from lmjax import trained
from lmjax.errors import UserError
from lmjax.interop.peft import CONFIG, TENSORS, export_adapter
from lmjax.interop.write import export
from lmjax.loaded import load_model
from lmjax.models import lora
from lmjax.models.lora import LoRA
from lmjax.models.positions import Learned
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.trees import named_leaves, nested
from tests import tiny
from tests.interop.directories import gpt2_tokenizer_files, params_of

IDS = np.arange(30).reshape(2, 15)
# a model with one matrix for queries, keys and values, in two orders, and one in which gate and up are the same
CASES = {
    "gpt2": (tiny.gpt2(), ("blocks/attention/[qv]/kernel", "blocks/feedforward/up/kernel")),
    "neox": (tiny.neox(scale_by_layer=False), ("blocks/*/kernel", "unembedding")),
    "squared": (
        tiny.llama(feedforward=tiny.Dense(width=48, activation="relu_squared", bias=False)), ("blocks/feedforward/*",),
    ),
}  # fmt: skip


def adapted(cfg, weights, directory, **changes):
    """(experiment on an exported base, the base's parameters, A and B that are not 0)."""
    params = params_of(cfg)
    export(cfg, params, None, directory / "base")
    task = Seq2Seq() if cfg.encoder_layers else CausalLM() if cfg.causal else MaskedLM()
    exp = tiny.experiment("unused", model=cfg, task=task, init_from=str(directory / "base"))
    exp = replace(exp, adapter=LoRA(rank=3, alpha=6.0, weights=weights, **changes))
    rng, (parts, _) = np.random.default_rng(0), jax.eval_shape(partial(trained.split, exp), params)
    ours = {path: rng.standard_normal(x.shape).astype(np.float32) / 4 for path, x in named_leaves(parts)}
    return exp, params, nested(ours)


@pytest.mark.parametrize("name", CASES)
def test_out_and_in_again(name, tmp_path):
    exp, params, ours = adapted(*CASES[name], tmp_path)
    export_adapter(exp, ours, tmp_path / "adapter", exp.init_from)
    model = lmjax.LanguageModel(exp.model, jax.jit(partial(trained.whole, exp))(ours, params), None, tmp_path)
    expected = np.asarray(model(IDS).logits)
    assert np.abs(np.asarray(lmjax.load(exp.init_from)(IDS).logits) - expected).max() > 0.1 * np.abs(expected).max()
    found = np.asarray(lmjax.load(tmp_path / "adapter")(IDS).logits)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    # an adapter is a model to start from and to compare, like any other
    assert load_model(tmp_path / "adapter").experiment.model == load_model(exp.init_from).experiment.model


def test_the_files_are_as_peft_has_them(tmp_path):
    exp, _, ours = adapted(*CASES["gpt2"], tmp_path)
    export_adapter(exp, ours, tmp_path / "adapter", "gpt2")
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert config["target_modules"] == ["attn.c_attn", "mlp.c_fc"]
    # queries and values side by side: the rank is the sum, alpha / rank stays
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (
        3,
        {"attn.c_attn": 6},
        {"attn.c_attn": 12.0},
    )
    assert config["fan_in_fan_out"] is True
    assert config["base_model_name_or_path"] == "gpt2"
    tensors = load_file(tmp_path / "adapter" / TENSORS)
    prefix = "base_model.model.transformer.h.1."
    assert tensors[f"{prefix}attn.c_attn.lora_A.weight"].shape == (6, 32)
    b = tensors[f"{prefix}attn.c_attn.lora_B.weight"]
    assert b.shape == (96, 6)
    q = np.asarray(dict(named_leaves(ours))[f"blocks/attention/q/kernel/{lora.B}"])[1]
    np.testing.assert_array_equal(b[:32, :3], q.reshape(3, 32).T)
    assert (b[32:64] == 0).all() and (b[:32, 3:] == 0).all() and (b[64:, :3] == 0).all()


@pytest.mark.parametrize(
    ("cfg", "weights", "train", "message"),
    [
        (tiny.gpt2(), ("embedding",), (), "PEFT cannot say the adapter of embedding and its transpose, the unembedding,"),
        (tiny.mixtral(), ("blocks/feedforward/up",), (), "PEFT cannot say the adapter of blocks/feedforward/up, experts"),
        (tiny.t5(), ("blocks/attention/q/kernel",), (), "are written of models of the next token that have one stack"),
        (tiny.bert(positions=Learned()), ("blocks/attention/q/kernel",), (), "are written of models of the next token"),
        (tiny.gpt2(), ("blocks/attention/q/kernel",), ("final_norm/*",), "hold A and B alone, and final_norm/bias is trained itself"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_one_line(cfg, weights, train, message, tmp_path):
    exp, _, ours = adapted(cfg, weights, tmp_path, train=train)
    (tmp_path / "adapter").mkdir()
    with pytest.raises(UserError, match=message):
        export_adapter(exp, ours, tmp_path / "adapter", "base")
    assert list((tmp_path / "adapter").iterdir()) == []


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"base_model_name_or_path": "nowhere"}, None, "base_model_name_or_path is 'nowhere'; expected another directory"),
        ({"base_model_name_or_path": ""}, None, "base_model_name_or_path is ''; expected another directory"),
        ({"base_model_name_or_path": "."}, None, "base_model_name_or_path is '.'; expected another directory"),
        ({"base_model_name_or_path": "../base/.."}, None, "base .* is no Hugging Face directory with a model's tensors"),
        ({"peft_type": "IA3"}, None, "peft_type is 'IA3'; expected 'LORA'"),
        ({"init_lora_weights": "pissa_niter_4"}, None, "init_lora_weights is 'pissa_niter_4'; expected one of True, False,"),
        ({"use_dora": True}, None, "use_dora is True"),
        ({"alpha_pattern": {"h\\.[01].*": 3}}, None, "expected plain names of modules"),
        ({}, {"base_model.model.transformer.h.9.mlp.c_fc.lora_A.weight": (3, 32)}, "has no A and B that fit together"),
        ({}, {"base_model.model.transformer.h.1.mlp.c_fc.lora_A.weight": (3, 31)}, "mlp.c_fc has another shape in"),
        ({}, {"base_model.model.score.weight": (2, 32)}, "base_model.model.score.weight is neither A nor B|score.weight is neither"),
    ],
)  # fmt: skip
def test_a_directory_that_is_not_right_is_one_line(config, tensors, message, tmp_path):
    exp, _, ours = adapted(*CASES["gpt2"], tmp_path)
    export_adapter(exp, ours, tmp_path / "adapter", exp.init_from)
    file = tmp_path / "adapter" / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    if tensors is not None:
        found = load_file(tmp_path / "adapter" / TENSORS)
        save_file(
            found | {k: np.ones(shape, np.float32) for k, shape in tensors.items()}, tmp_path / "adapter" / TENSORS
        )
    with pytest.raises(UserError, match=message) as caught, contextlib.chdir(tmp_path / "adapter"):
        load_model(tmp_path / "adapter")
    assert "\n" not in str(caught.value)


def test_what_lies_beside_an_adapter(tmp_path):
    """Trainers put the base's config.json and the tokenizer there; tensors of a model are another thing."""
    exp, _, ours = adapted(tiny.llama(vocab=300), CASES["squared"][1], tmp_path)
    out = tmp_path / "adapter"
    export_adapter(exp, ours, out, exp.init_from)
    (tmp_path / "base/generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    settings = {"tokenizer_class": "GPT2Tokenizer", "chat_template": "{{ messages[0].content }}"}
    for directory in (tmp_path / "base", out):
        gpt2_tokenizer_files(directory)
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        settings["chat_template"] = "<{{ messages[0].content }}>"
    bare = load_model(out)
    shutil.copy(tmp_path / "base/config.json", out)
    found = load_model(out)
    assert bare.tokenizer.chat.template == found.tokenizer.chat.template == settings["chat_template"]
    assert bare.tokenizer.policy.stops == (7,) and found.experiment.tokenizer.path == str(out)
    for (path, x), (_, y) in zip(named_leaves(bare.params), named_leaves(found.params), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=path)
    with pytest.raises(UserError, match=r"--step 5: .* is not a run and has no steps"):
        load_model(out, 5)
    (out / CONFIG).rename(tmp_path / CONFIG)
    with pytest.raises(UserError, match=r"no model.safetensors and no"):
        load_model(out)
    (tmp_path / CONFIG).rename(tmp_path / "base" / CONFIG)
    with pytest.raises(UserError, match=r"a model and an adapter \(adapter_config.json\) lie together"):
        load_model(tmp_path / "base")
