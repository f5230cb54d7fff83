"""T5 to directories and back, and as old files have it."""

import json

import jax
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.interop.families import family_for
from lmjax.interop.family import normal
from lmjax.interop.read import load_params, open_checkpoint
from lmjax.interop.tokenizer_files import of_directory
from lmjax.interop.write import export
from lmjax.models import transformer
from lmjax.models.feedforward import Dense
from lmjax.sharding import Mesh, build_mesh
from lmjax.tokenizers import Bytes, SentencePiece
from tests import tiny
from tests.interop.directories import change_config, params_of
from tests.interop.test_directories import assert_same, rewrite

T5 = tiny.t5()
MODELS = {
    "v1.1": T5,
    "v1.0": tiny.t5(tied=True, scaled_output=True, feedforward=Dense(width=40, activation="relu", bias=False)),
    "tied and not scaled": tiny.t5(tied=True, feedforward=Dense(width=40, activation="gelu", bias=False)),
}


@pytest.mark.parametrize("name", MODELS)
def test_exported_and_imported_bit_by_bit(name, tmp_path):
    cfg = MODELS[name]
    params = params_of(cfg)
    export(cfg, params, None, tmp_path / "out", start=7)
    found = open_checkpoint(tmp_path / "out")
    assert found.family.model_type == "t5" == family_for(cfg)[0].model_type
    assert normal(found.cfg) == normal(cfg) and found.start == 7
    assert_same(load_params(found, stacked=True), params)
    assert_same(load_params(found, stacked=False), transformer.apart(params))
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["T5ForConditionalGeneration"] and config["is_encoder_decoder"]


def test_onto_a_mesh(tmp_path):
    params = params_of(T5)
    export(T5, params, None, tmp_path / "out")
    loaded = load_params(open_checkpoint(tmp_path / "out"), stacked=True, mesh=build_mesh(Mesh(fsdp=4, tensor=2)))
    assert_same(loaded, jax.tree.map(np.asarray, params))


def test_where_old_files_have_the_embedding(tmp_path):
    """Twice, or under another name alone; an unembedding that differs counts although the config ties it."""
    cfg = MODELS["v1.0"]
    params = params_of(cfg)
    out, decoder = tmp_path / "out", "decoder.embed_tokens.weight"
    export(cfg, params, None, out)
    change_config(out, {}, without=("scale_decoder_outputs",))
    rewrite(out, lambda x: x.update({decoder: x["shared.weight"]}))
    assert_same(load_params(open_checkpoint(out), stacked=True), params)
    rewrite(out, lambda x: x.pop("shared.weight"))
    assert normal(open_checkpoint(out).cfg) == normal(cfg)
    assert_same(load_params(open_checkpoint(out), stacked=True), params)
    rewrite(out, lambda x: x.update({"encoder.embed_tokens.weight": 1 + x[decoder]}))
    with pytest.raises(UserError, match="decoder.embed_tokens.weight differs from the embedding"):
        open_checkpoint(out)
    rewrite(out, lambda x: x.pop("encoder.embed_tokens.weight"))
    rewrite(out, lambda x: x.update({"lm_head.weight": 1 + x[decoder]}))
    found = open_checkpoint(out)
    assert not found.cfg.tied and found.cfg.scaled_output and "although config.json ties them" in found.notes[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feed_forward_proj": "gated-mish"}, "feed_forward_proj is 'gated-mish'; expected gated-gelu"),
        ({"num_layers": 9}, "encoder.block.2.layer.0"),
        ({"d_kv": None}, "d_kv is None; expected a positive whole number"),
        ({"relative_attention_num_buckets": 6}, "buckets is 6; expected a positive multiple of 4"),
        ({"decoder_start_token_id": 97}, "decoder_start_token_id is 97; expected an id below 97"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_line(fields, message, tmp_path):
    export(T5, params_of(T5), None, tmp_path / "out")
    change_config(tmp_path / "out", fields)
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path / "out")


def test_the_transformer_of_2017_has_no_directory():
    with pytest.raises(UserError, match="no Hugging Face architecture says this model"):
        family_for(tiny.translator())


def test_a_source_ends_with_eos_in_transformers_too(tmp_path):
    import tokenizers

    tokenizer = Bytes(eos=True).build(list)
    cfg = tiny.t5(vocab=258)
    export(cfg, params_of(cfg), tokenizer, tmp_path / "out")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    again = of_directory(tmp_path / "out")
    assert theirs.encode("a b").ids == list(tokenizer.encode_document("a b")) == list(again.encode_document("a b"))
    assert again.policy.stops == tokenizer.policy.stops


def test_a_sentencepiece_model_of_t5(tmp_path):
    """EOS behind a text, nothing before it."""
    built = SentencePiece(vocab_size=400).build(lambda: [tiny.text(4000)])
    (tmp_path / "spiece.model").write_bytes(built.model)
    found = of_directory(tmp_path)
    assert found.policy.bos is None and found.policy.stops == (found.policy.eos,) == (built.policy.eos,)
