"""BERT and RoBERTa to directories and back, and as old files have them."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import lmjax
from lmjax.errors import UserError
from lmjax.interop.families import family_for
from lmjax.interop.family import normal
from lmjax.interop.read import load_params, open_checkpoint
from lmjax.interop.write import export
from lmjax.models import transformer
from lmjax.models.positions import Learned
from tests import tiny
from tests.interop.directories import change_config, params_of
from tests.interop.test_directories import assert_same, rewrite

BERT = tiny.bert(positions=Learned())
MODELS = {
    "bert": BERT, "bert with its masked head alone": replace(BERT, pooler=False),
    "bert without a head": replace(BERT, masked_head=None), "roberta": tiny.bert(token_types=1),
    "roberta with another padding": tiny.bert(positions=Learned(offset=4)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_exported_and_imported_bit_by_bit(name, tmp_path):
    cfg = MODELS[name]
    params = params_of(cfg)
    export(cfg, params, None, tmp_path / "out")
    found = open_checkpoint(tmp_path / "out")
    assert found.family.model_type == name.split()[0] == family_for(cfg)[0].model_type
    assert normal(found.cfg) == normal(cfg)
    assert_same(load_params(found, stacked=True), params)
    assert_same(load_params(found, stacked=False), transformer.apart(params))
    kind = "Bert" if name.startswith("bert") else "Roberta"
    architecture = json.loads((tmp_path / "out/config.json").read_text())["architectures"]
    assert architecture == [f"{kind}ForMaskedLM" if cfg.masked_head else f"{kind}Model"]


def test_an_old_file_of_bert(tmp_path):
    """gamma and beta, no prefix, the buffer of positions, the second task's head, the output's bias twice."""
    params = params_of(BERT)
    export(BERT, params, None, tmp_path / "out")

    def older(arrays):
        for name in list(arrays):
            bare = name.removeprefix("bert.")
            bare = bare.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            arrays[bare] = arrays.pop(name)
        assert sum(name.endswith("gamma") for name in arrays) == 6
        arrays["embeddings.position_ids"] = np.arange(BERT.context)[None]
        arrays["cls.seq_relationship.weight"] = np.zeros((2, BERT.width), np.float32)
        arrays["cls.seq_relationship.bias"] = np.zeros(2, np.float32)
        arrays["cls.predictions.decoder.weight"] = arrays["embeddings.word_embeddings.weight"]
        arrays["cls.predictions.decoder.bias"] = arrays["cls.predictions.bias"]

    rewrite(tmp_path / "out", older)
    change_config(tmp_path / "out", {"model_type": None, "architectures": ["BertForPreTraining"]})
    found = open_checkpoint(tmp_path / "out")
    assert normal(found.cfg) == normal(BERT)
    assert_same(load_params(found, stacked=True), params)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'; expected 'absolute'"),
        ({"is_decoder": True}, "is_decoder is True; expected False"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'; expected one of gelu"),
        ({"type_vocab_size": 3}, "token_type_embeddings.weight has the shape"),
    ],
)
def test_a_configuration_that_is_not_supported_is_one_line(fields, message, tmp_path):
    export(BERT, params_of(BERT), None, tmp_path / "out")
    change_config(tmp_path / "out", fields)
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path / "out")


def test_a_missing_tensor_of_a_head_is_named(tmp_path):
    export(BERT, params_of(BERT), None, tmp_path / "out")
    rewrite(tmp_path / "out", lambda arrays: arrays.pop("cls.predictions.bias"))
    with pytest.raises(UserError, match="cls.predictions.bias is missing"):
        open_checkpoint(tmp_path / "out")


def test_an_encoder_is_no_language_model(tmp_path):
    export(BERT, params_of(BERT), None, tmp_path / "out")
    with pytest.raises(UserError, match="load: .*out is an encoder; expected a model of the next token"):
        lmjax.load(tmp_path / "out")


def test_onto_a_mesh(tmp_path):
    from lmjax.sharding import Mesh, build_mesh

    params = params_of(BERT)
    export(BERT, params, None, tmp_path / "out")
    loaded = load_params(open_checkpoint(tmp_path / "out"), stacked=True, mesh=build_mesh(Mesh(fsdp=4, tensor=2)))
    assert_same(loaded, jax.tree.map(np.asarray, params))
