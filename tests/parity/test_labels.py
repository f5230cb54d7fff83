"""Models that label texts beside transformers' own, both ways: probabilities within 1e-4, names of labels."""

import json

import numpy as np
import pytest
import torch
import transformers

import lmjax
import run as command_line
from lmjax.data.records import Table
from lmjax.data.sources import OtherFiles
from lmjax.experiment import DataConfig
from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Gated
from lmjax.models.norms import RMSNorm
from lmjax.models.positions import Learned, Rotary
from lmjax.tasks.classification import Classification
from lmjax.tokenizers import Bytes, SentencePiece
from lmjax.train import loop
from tests import tiny

TEXTS = ["a fine film", "dull", "not once did it lose its pace , and yet"]
LABELS = {0: "poor", 1: "fair", 2: "good"}
ENCODER = {
    "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 44,
    "layer_norm_eps": 3e-3, "max_position_embeddings": 60,
}  # fmt: skip
DECODER = {
    "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
    "intermediate_size": 44, "max_position_embeddings": 60,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 60}
MODELS = {
    "Bert": {**ENCODER, "type_vocab_size": 2}, "Roberta": {**ENCODER, "type_vocab_size": 1, "pad_token_id": 0},
    "GPT2": GPT2, "Llama": DECODER, "Qwen2": DECODER, "Qwen3": DECODER,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Of transformers, with tokens around a text as BERT's and one in front as Llama's: <s> text </s>."""
    from lmjax.interop.tokenizer_export import hugging_face_files

    directory = tmp_path_factory.mktemp("tokenizer")
    ours = SentencePiece(vocab_size=300).build(lambda: [tiny.text(4000), *TEXTS])
    for name, content in hugging_face_files(ours, whole=True, types=True).items():
        (directory / name).write_bytes(content)
    return transformers.AutoTokenizer.from_pretrained(directory)


def probabilities(model, tokenizer, texts):
    """By transformers, each text alone."""
    found = []
    for text in texts:
        inputs = tokenizer(*(text if isinstance(text, tuple) else (text,)), return_tensors="pt")
        if model.config.model_type not in ("bert", "roberta"):
            inputs.pop("token_type_ids", None)
        with torch.no_grad():
            found.append(torch.softmax(model(**inputs).logits[0], -1).numpy())
    return np.array(found)


def ours(model, texts):
    return np.array([list(one["probabilities"].values()) for one in model(texts)])


@pytest.mark.parametrize("name", MODELS)
def test_theirs_in_ours(name, tokenizer, tmp_path):
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokenizer), id2label=LABELS, label2id={v: k for k, v in LABELS.items()}, **MODELS[name]
    )
    torch.manual_seed(3)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape) * (0.8 if weight.dim() < 2 else 2 / weight.shape[-1] ** 0.5))
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    expected = probabilities(model, tokenizer, TEXTS)
    assert np.ptp(expected, axis=0).max() > 0.05
    loaded = lmjax.load(tmp_path / "m")
    assert loaded.labels == tuple(LABELS.values())
    np.testing.assert_allclose(ours(loaded, TEXTS), expected, atol=1e-4)
    if name == "Bert":
        pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
        np.testing.assert_allclose(ours(loaded, pairs), probabilities(model, tokenizer, pairs), atol=1e-4)


RUNS = {
    "bert": ModelConfig(
        layers=2, width=32, heads=4, context=64, causal=False, norm_first=False, embedding_norm=True, token_types=2,
        pooler=True, init_std=0.2, positions=Learned(),
    ),
    "roberta": ModelConfig(
        layers=2, width=32, heads=4, context=64, causal=False, norm_first=False, embedding_norm=True, token_types=1,
        pooler=True, init_std=0.2, positions=Learned(offset=1),
    ),
    "gpt2": ModelConfig(layers=2, width=32, heads=4, context=64, init_std=0.2),
    "llama": ModelConfig(
        layers=2, width=32, heads=4, kv_heads=2, context=64, positions=Rotary(), norm=RMSNorm(), bias=False,
        feedforward=Gated(width=48), tied=False, init_std=0.2,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"), [(name, SentencePiece(vocab_size=300)) for name in RUNS] + [("gpt2", Bytes(bos=True, eos=True))]
)
def test_a_run_of_ours_in_theirs(name, kind, tmp_path, capsys):
    rows = "".join(f"{text}\t{label}\n" for text, label in zip(TEXTS * 20, ["good", "poor", "fair"] * 20, strict=True))
    for part in ("train", "dev"):
        (tmp_path / f"{part}.tsv").write_text(rows)
    source = Table(
        path=str(tmp_path / "train.tsv"), columns=("text", "label"), held_out=OtherFiles(path=str(tmp_path / "dev.tsv"))
    )
    pair = name == "bert"
    exp = tiny.experiment(
        tmp_path, task=Classification(second="text" if pair else None), data=DataConfig(source=source, length=64), model=RUNS[name],
        steps=5, tokenizer=kind, evaluate_every=5, batch_size=8, microbatches=1,
    )  # fmt: skip
    loop.train(exp, tmp_path / "run")
    capsys.readouterr()
    assert command_line.main(["export", "--model", str(tmp_path / "run"), "--to", str(tmp_path / "hf")]) == 0
    assert "ForSequenceClassification, float32" in capsys.readouterr().out
    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.config.id2label == {0: "fair", 1: "good", 2: "poor"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    texts = [(text, text) for text in TEXTS] if pair else TEXTS
    mine = ours(lmjax.load(tmp_path / "run"), texts)
    np.testing.assert_allclose(probabilities(model.eval(), tokenizer, texts), mine, atol=1e-4)
    if not pair:
        # a padded batch
        with torch.no_grad():
            logits = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
        np.testing.assert_allclose(torch.softmax(logits, -1).numpy(), mine, atol=1e-4)
    np.testing.assert_allclose(ours(lmjax.load(tmp_path / "hf"), texts), mine, atol=1e-6)

    # the directory is evaluated as the run is
    (tmp_path / "test.tsv").write_text("text\tlabel\n" + rows)
    if not pair:
        words = ["evaluate", "--data", str(tmp_path / "test.tsv"), "--json", str(tmp_path / "out.json"), "--model"]
        assert command_line.main([*words, str(tmp_path / "hf")]) == 0
        own = json.loads((tmp_path / "out.json").read_text())
        assert own["labels"] == ["fair", "good", "poor"]
        assert own["accuracy"] == pytest.approx(np.mean(mine.argmax(-1) == [1, 2, 0]))
