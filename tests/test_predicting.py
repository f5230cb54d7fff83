"""The verb `predict`: every record in its order, stopped and gone on with to the same bits, mistakes in one line."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import run as command_line
from lmjax import predicting
from lmjax.data.records import Table
from lmjax.data.sources import OtherFiles
from lmjax.evaluate.labels import Labeller
from lmjax.experiment import DataConfig
from lmjax.interop.write import export
from lmjax.models import transformer
from lmjax.tasks.classification import Classification
from lmjax.tokenizers import Bytes
from lmjax.train import loop
from tests import tiny

WORDS = ["good film", "bad", "so so, rather long", "g" * 20, "ä"]
TEXTS = [f"{WORDS[i % 5]} {i}" for i in range(23)]


pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels")
    (path / "train.tsv").write_text("".join(f"{text}\t{'ab'[i % 2]}\n" for i, text in enumerate(TEXTS)))
    source = Table(
        path=str(path / "train.tsv"), columns=("text", "label"), held_out=OtherFiles(path=str(path / "train.tsv"))
    )
    exp = tiny.experiment(
        path, task=Classification(), data=DataConfig(source=source), steps=2, evaluate_every=2, checkpoint_every=2,
        model=tiny.bert(vocab=None, context=32, masked_head=None, token_types=0), tokenizer=Bytes(bos=True),
    )  # fmt: skip
    loop.train(exp, path / "run")
    return path / "run"


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(predicting, "PART", 5)


def predict(model, source, output):
    return command_line.main(["predict", "--model", str(model), "--input", str(source), "--output", str(output)])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_record_in_its_order_from_any_format(model, tmp_path, small_parts):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text, "id": 7}) + "\n" for text in TEXTS))
    (tmp_path / "in.tsv").write_text("".join(f"{text}\tunknown\n" for text in TEXTS))
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    found = {}
    for kind in ("jsonl", "tsv", "txt"):
        assert predict(model, tmp_path / f"in.{kind}", tmp_path / f"{kind}.out") == 0
        found[kind] = lines(tmp_path / f"{kind}.out")
    assert found["jsonl"] == found["tsv"] == found["txt"]
    assert len(found["txt"]) == len(TEXTS)
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == [
        "jsonl.out",
        "tsv.out",
        "txt.out",
    ]
    for prediction in found["txt"]:
        assert set(prediction["probabilities"]) == {"a", "b"}
        assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=1e-6)
        assert prediction["label"] == max(prediction["probabilities"], key=prediction["probabilities"].get)
    # what stands alone in a file has the same probabilities
    (tmp_path / "one.txt").write_text(TEXTS[17] + "\n")
    assert predict(model, tmp_path / "one.txt", tmp_path / "one.out") == 0
    (alone,) = lines(tmp_path / "one.out")
    assert alone["probabilities"] == pytest.approx(found["txt"][17]["probabilities"], abs=1e-6)


@pytest.fixture(scope="module")
def uninterrupted(model, tmp_path_factory):
    """What is written for all texts."""
    place = tmp_path_factory.mktemp("whole")
    (place / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predicting, "PART", 5)
        assert predict(model, place / "in.txt", place / "whole.out") == 0
    return (place / "whole.out").read_bytes()


@pytest.mark.parametrize(
    ("after", "torn"), [(0, b""), (0, b'{"label": "a", "pro'), (1, b""), (3, b'{"label": "a", "pro')]
)
def test_stopped_it_goes_on_to_the_same_bits(model, uninterrupted, tmp_path, monkeypatch, small_parts, after, torn):
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    whole, calls = Labeller.__call__, []

    def stopped(self, params, records):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(len(records))
        return whole(self, params, records)

    monkeypatch.setattr(Labeller, "__call__", stopped)
    assert predict(model, tmp_path / "in.txt", tmp_path / "x.out") == 130
    assert not (tmp_path / "x.out").exists()
    partial = tmp_path / "x.out.partial"
    assert (len(partial.read_bytes().splitlines()) if after else partial.exists()) == bool(after) + 5 * after
    with open(partial, "ab") as stream:
        stream.write(torn)

    def counted(self, params, records):
        calls.append(len(records))
        return whole(self, params, records)

    monkeypatch.setattr(Labeller, "__call__", counted)
    assert predict(model, tmp_path / "in.txt", tmp_path / "x.out") == 0
    assert sum(calls) == len(TEXTS)
    assert (tmp_path / "x.out").read_bytes() == uninterrupted
    assert not partial.exists()


def test_mistakes_are_one_line_and_lose_nothing(model, tmp_path, capsys, small_parts):
    source, output = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))

    def message(*arguments):
        capsys.readouterr()
        assert predict(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    output.write_text("mine")
    assert f"--output {output}: is there already; expected a new file" in message(model, source, output)
    assert output.read_text() == "mine"
    output.unlink()
    assert "expected a file in a directory that exists" in message(model, source, tmp_path / "no" / "out")
    for name in ("none.jsonl", "*.jsonl"):
        assert f"--input {tmp_path}/{name}: no such file; expected one file" in message(model, tmp_path / name, output)

    (tmp_path / "empty.jsonl").write_text("")
    assert "there is no record in it" in message(model, tmp_path / "empty.jsonl", output)
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    assert "bad.jsonl:2: no field 'text'; it has 'txt'" in message(model, tmp_path / "bad.jsonl", output)
    partial = tmp_path / "out.partial"
    assert not partial.exists()
    partial.write_text('{"model": "another", "step": 2}\n{"label": "a"}\n')
    before = partial.read_text()
    assert "is of another model and weights and input; delete it to begin anew" in message(model, source, output)
    assert partial.read_text() == before


def test_a_model_of_text_has_nothing_to_predict(tmp_path, capsys):
    cfg = replace(tiny.gpt2(), vocab=258)
    params = transformer.init_params(cfg, jax.random.key(0))
    export(cfg, params, Bytes().build(list), tmp_path / "gpt2")
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    assert predict(tmp_path / "gpt2", tmp_path / "in.jsonl", tmp_path / "out") == 2
    assert "was trained for CausalLM; expected a model of a task on records" in capsys.readouterr().err
    assert np.sum([path.name == "out" for path in tmp_path.iterdir()]) == 0
