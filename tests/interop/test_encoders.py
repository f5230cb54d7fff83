"""BERT and RoBERTa to directories and back, and as old files have them."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import tokenizers as hf

import lmjax
import run as command_line
from lmjax.errors import UserError
from lmjax.interop.config_json import ConfigJson
from lmjax.interop.families import family_for, family_of
from lmjax.interop.family import normal
from lmjax.interop.read import load_params, open_checkpoint
from lmjax.interop.tokenizer_files import of_directory
from lmjax.interop.write import export
from lmjax.models import transformer, zoo
from lmjax.models.positions import Learned
from lmjax.optim import AdamW, Cosine
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tokenizers import HuggingFace
from lmjax.train import loop
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


def test_an_encoder_is_loaded_as_a_model_of_masked_tokens(tmp_path):
    params = params_of(BERT)
    export(BERT, params, None, tmp_path / "out")
    model, tokens = lmjax.load(tmp_path / "out"), np.random.default_rng(0).integers(0, BERT.vocab, (2, 9))
    assert isinstance(model, lmjax.MaskedModel)
    positions = np.broadcast_to(np.arange(9), (2, 9))
    hidden, _ = jax.jit(lambda params: transformer.hidden(BERT, params, tokens, positions))(params)
    np.testing.assert_allclose(model(tokens).logits, transformer.masked_logits(BERT, params, hidden), atol=1e-5)
    with pytest.raises(UserError, match="out has no tokenizer; expected an array of token ids"):
        model("a text")


@pytest.mark.parametrize("lstrip", [True, False])
def test_a_mask_in_a_text_is_read_as_the_tokenizer_has_it(tmp_path, lstrip):
    """RoBERTa's takes the space before it: otherwise that would be a token of its own."""
    letters = sorted(hf.pre_tokenizers.ByteLevel.alphabet())
    built = hf.Tokenizer(hf.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    built.pre_tokenizer, built.decoder = hf.pre_tokenizers.ByteLevel(add_prefix_space=False), hf.decoders.ByteLevel()
    built.add_special_tokens(["<s>", "</s>", hf.AddedToken("<mask>", lstrip=lstrip, special=True)])
    built.post_processor = hf.processors.RobertaProcessing(("</s>", 257), ("<s>", 256), add_prefix_space=False)
    cfg = replace(BERT, vocab=259)
    export(cfg, params_of(cfg), None, tmp_path)
    built.save(str(tmp_path / "tokenizer.json"))
    model = lmjax.load(tmp_path)
    for text in ("The <mask> sat on  <mask>.", "<mask> sat", "a <mask> <mask>"):
        assert model.encode(text).tolist() == built.encode(text).ids


def test_onto_a_mesh(tmp_path):
    from lmjax.sharding import Mesh, build_mesh

    params = params_of(BERT)
    export(BERT, params, None, tmp_path / "out")
    loaded = load_params(open_checkpoint(tmp_path / "out"), stacked=True, mesh=build_mesh(Mesh(fsdp=4, tensor=2)))
    assert_same(loaded, jax.tree.map(np.asarray, params))


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        (zoo.bert("base"), {"model_type": "bert", "vocab_size": 30522, "max_position_embeddings": 512}),
        (
            zoo.roberta("base"),
            {
                "model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1,
                "layer_norm_eps": 1e-5, "pad_token_id": 1,
            },
        ),
    ],
)  # fmt: skip
def test_the_zoo_has_what_their_files_say(cfg, said):
    """bert-base-uncased's and roberta-base's config.json."""
    sizes = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    config = ConfigJson("config.json", sizes | said | {"hidden_act": "gelu", "initializer_range": 0.02})
    unsaid = replace(config, values={k: v for k, v in config.values.items() if k != "type_vocab_size"})
    assert family_of(config).read(unsaid).token_types == 2
    # RoBERTa's files have no pooler
    assert normal(replace(family_of(config).read(config), pooler=cfg.pooler)) == normal(cfg)


def bert_directory(folder):
    """A small BERT with its WordPiece tokenizer, as transformers ships it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *tiny.WORDS, *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    built = hf.Tokenizer(
        hf.models.WordPiece({word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token="[UNK]")
    )
    built.pre_tokenizer, built.decoder = hf.pre_tokenizers.BertPreTokenizer(), hf.decoders.WordPiece()
    built.add_special_tokens(words[:5])
    built.post_processor = hf.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    cfg = replace(BERT, vocab=built.get_vocab_size(), context=16)
    export(cfg, params_of(cfg), None, folder)
    built.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": "[MASK]", "cls_token": "[CLS]"}))
    return cfg


def test_pretraining_goes_on_from_a_directory(one_device_here, text_file, tmp_path, capsys):
    """With no more said than its path; what it is evaluated by, the directory is too."""
    cfg = bert_directory(tmp_path / "bert")
    exp = tiny.experiment(
        text_file, model=replace(cfg, vocab=None), task=MaskedLM(), init_from=str(tmp_path / "bert"), steps=1,
        tokenizer=HuggingFace(path=str(tmp_path / "bert")), optimizer=AdamW(b2=0.95), schedule=Cosine(peak=1e-30),
    )  # fmt: skip
    loop.train(exp, tmp_path / "run")
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    # one step that changes nothing: the run is the directory, and both are evaluated alike
    result, figures = tmp_path / "out.json", []
    for model in ("bert", "run"):
        words = ["evaluate", "--model", str(tmp_path / model), "--text", str(text_file), "--json", str(result)]
        assert command_line.main(words) == 0
        figures.append(json.loads(result.read_text()))
    assert figures[0]["eval_loss"] == pytest.approx(figures[1]["eval_loss"], rel=1e-5)
    assert figures[0]["tokens"] == figures[1]["tokens"] > 400 and last["eval_loss"] > 0
    assert "[" in (tmp_path / "run" / "samples.txt").read_text()
    export_words = ["export", "--model", str(tmp_path / "run"), "--to", str(tmp_path / "back")]
    assert command_line.main(export_words) == 0
    back = of_directory(tmp_path / "back").policy
    assert (back.bos, back.eos, back.mask) == (2, 3, 4)
    assert command_line.main(["verify", "--model", str(tmp_path / "back"), "--against", str(tmp_path / "bert")]) == 0
    filled = lmjax.load(tmp_path / "back").fill(f"{tiny.text(20)} [MASK] [MASK]", top=3)
    assert [len(place) for place in filled] == [3, 3] and filled[0][0][1] >= filled[0][1][1] > 0
    capsys.readouterr()
    assert command_line.main(["generate", "--model", str(tmp_path / "run")]) == 2
    assert "run is an encoder trained for MaskedLM; expected a model of the next token" in capsys.readouterr().err
    words = ["evaluate", "--model", str(tmp_path / "run"), "--suite", "perplexity", "--data", str(text_file)]
    assert command_line.main(words) == 2
    assert "--suite perplexity: scores the next token, and" in capsys.readouterr().err
