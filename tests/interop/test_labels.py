"""Models that label texts, to directories and back: every family's head, the names of the labels, what is refused."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.interop.family import normal
from lmjax.interop.labels import written
from lmjax.interop.read import load_params, open_checkpoint
from lmjax.interop.write import export
from lmjax.models.positions import Learned
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.classification import Classification
from tests import tiny
from tests.interop.directories import CONFIGS, change_config, params_of
from tests.interop.test_directories import assert_same, rewrite

LABELS = ("poor", "fair", "good")
BERT = tiny.bert(positions=Learned(), masked_head=None)
# family: (a model of ours with outputs, its head's first tensor, architecture)
ENCODERS = {
    "bert": (BERT, "classifier.weight", "BertForSequenceClassification"),
    "roberta": (
        tiny.bert(token_types=1, masked_head=None),
        "classifier.out_proj.weight",
        "RobertaForSequenceClassification",
    ),
}
DECODERS = {
    "gpt2": "GPT2", "gpt_neox": "GPTNeoX", "llama": "Llama", "mistral": "Mistral", "mixtral": "Mixtral",
    "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma2": "Gemma2", "gemma3_text": "Gemma3Text",
}  # fmt: skip
MODELS = ENCODERS | {
    name: (CONFIGS[name], "score.weight", f"{theirs}ForSequenceClassification") for name, theirs in DECODERS.items()
}


def saved(name, directory):
    cfg = replace(MODELS[name][0], outputs=3)
    params = params_of(cfg)
    export(cfg, params, None, directory, labels=LABELS)
    return cfg, params


@pytest.mark.parametrize("name", MODELS)
def test_exported_and_imported_bit_by_bit(name, tmp_path):
    cfg, params = saved(name, tmp_path / "out")
    found = open_checkpoint(tmp_path / "out")
    assert (found.family.model_type, found.labels) == (name, LABELS)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == [MODELS[name][2]]
    assert config["label2id"] == {"poor": 0, "fair": 1, "good": 2}
    assert MODELS[name][1] in found.tensors
    assert ("bias" in params["outputs"]["dense"]) == (name in ENCODERS)
    # what predicts tokens is not written
    assert normal(found.cfg) == normal(replace(cfg, tied=True))
    params.pop("unembedding", None)
    assert_same(load_params(found, stacked=True), params)


def test_files_as_others_have_them(tmp_path):
    """Without names of labels, and with heads that predict tokens beside the one for labels."""
    cfg, params = saved("roberta", tmp_path / "out")
    change_config(tmp_path / "out", {"num_labels": 3}, without=("id2label", "label2id", "problem_type"))

    def more(arrays):
        arrays["roberta.pooler.dense.weight"] = np.zeros((cfg.width, cfg.width), np.float32)
        arrays["lm_head.dense.weight"] = np.zeros((cfg.width, cfg.width), np.float32)

    rewrite(tmp_path / "out", more)
    found = open_checkpoint(tmp_path / "out")
    assert found.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert any("not read, since the model labels texts: " in note and "lm_head" in note for note in found.notes)
    assert_same(load_params(found, stacked=True), params)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"problem_type": "regression"}, "problem_type is 'regression'; expected 'single_label_classification'"),
        ({"problem_type": "multi_label_classification"}, "problem_type is 'multi_label_classification'; expected"),
        ({"id2label": {"0": "a"}}, "id2label is {'0': 'a'}; expected two or more different names"),
        ({"id2label": {"0": "a", "1": "a", "2": "b"}}, "expected two or more different names, numbered from 0"),
        ({"id2label": {"1": "a", "2": "c", "3": "b"}}, "expected two or more different names, numbered from 0"),
        (
            {"id2label": {"0": "a", "1": "b"}},
            r"classifier.weight has the shape \(3, 32\); config.json asks for \(2, 32\)",
        ),
        ({"architectures": ["BertForTokenClassification"]}, "classifier.weight belongs to no part of the model"),
    ],
)
def test_what_is_not_one_label_a_text_is_one_line(fields, message, tmp_path):
    saved("bert", tmp_path / "out")
    change_config(tmp_path / "out", fields)
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path / "out")


def test_a_missing_layer_is_named(tmp_path):
    saved("gpt2", tmp_path / "out")
    rewrite(tmp_path / "out", lambda arrays: arrays.pop("score.weight"))
    with pytest.raises(UserError, match="score.weight is missing"):
        open_checkpoint(tmp_path / "out")


def test_what_transformers_has_not_is_one_line(tmp_path):
    encoder, decoder = replace(BERT, outputs=2), tiny.gpt2(outputs=2)
    task = Classification(labels=("a", "b"))
    assert written(task, encoder) == written(task, decoder) == ("a", "b")
    assert written(CausalLM(), tiny.gpt2()) is None
    for pooling, cfg, message in (
        ("mean", encoder, "task.pooling is mean; transformers labels a text of an encoder by its first token's"),
        ("last", encoder, "task.pooling is last; transformers labels a text of an encoder by its first token's"),
        ("mean", decoder, "task.pooling is mean; transformers labels a text of a causal model by its last token's"),
    ):
        with pytest.raises(UserError, match=message):
            written(replace(task, pooling=pooling), cfg)
    bare = replace(encoder, pooler=False)
    with pytest.raises(UserError, match="bert, the nearest, differs in: pooler: False -> True"):
        export(bare, params_of(bare), None, tmp_path / "out", labels=("a", "b"))
    assert not (tmp_path / "out").exists()


def test_onto_a_mesh(tmp_path):
    from lmjax.sharding import Mesh, build_mesh

    _, params = saved("bert", tmp_path / "out")
    loaded = load_params(open_checkpoint(tmp_path / "out"), stacked=True, mesh=build_mesh(Mesh(fsdp=4, tensor=2)))
    assert_same(loaded, jax.tree.map(np.asarray, params))
