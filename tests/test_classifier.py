"""A Hugging Face directory that labels texts: called from Python, and evaluated with its own labels."""

import json

import jax
import pytest

import lmjax
import run as command_line
from lmjax.errors import UserError
from lmjax.interop.write import export
from lmjax.models import transformer
from lmjax.models.positions import Learned
from lmjax.tokenizers import Bytes
from tests import tiny

LABELS = ("bad", "good")
TEXTS = ["a b c", "d", "e f g h"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    cfg = tiny.bert(vocab=258, positions=Learned(), masked_head=None, outputs=2)
    place = tmp_path_factory.mktemp("labels") / "hf"
    tokenizer = Bytes(bos=True, eos=True).build(list)
    export(cfg, transformer.init_params(cfg, jax.random.key(0)), tokenizer, place, labels=LABELS)
    return place


def test_texts_and_pairs(directory):
    model = lmjax.load(directory)
    assert model.labels == LABELS
    many = model(TEXTS)
    for one, text in zip(many, TEXTS, strict=True):
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert one["label"] == max(one["probabilities"], key=one["probabilities"].get)
        assert model(text)["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)
    (pair,) = model([("a b", "c d")])
    # other tokens, and another type of the second text
    assert pair["probabilities"] != pytest.approx(model("a b</s>c d")["probabilities"], abs=1e-4)
    assert pair["probabilities"] != pytest.approx(model(("c d", "a b"))["probabilities"], abs=1e-4)
    for wrong, message in (
        ([], "the list of texts is empty"),
        (["a", ("b", "c")], "expected texts or pairs of texts, not both in one list"),
        (["a", "x" * 40], "text 1: 42 tokens; a row has 32"),
        (("a", 3), "text 0: 'second' is '3'; expected a text"),
    ):
        with pytest.raises(UserError, match=message):
            model(wrong)


def test_evaluated_with_its_own_labels(directory, tmp_path, capsys):
    told = [one["label"] for one in lmjax.load(directory)(TEXTS)]
    true = ["good", "good", "bad"]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in zip(TEXTS, true, strict=True))
    )
    (tmp_path / "b.tsv").write_text("label\ttext\n" + "".join(f"{y}\t{x}\n" for x, y in zip(TEXTS, true, strict=True)))
    words = ["evaluate", "--model", str(directory), "--json", str(tmp_path / "out.json"), "--data"]
    for name in ("a.jsonl", "b.tsv"):
        assert command_line.main([*words, str(tmp_path / name)]) == 0
        figures = json.loads((tmp_path / "out.json").read_text())
        assert figures["accuracy"] == pytest.approx(sum(map(str.__eq__, told, true)) / 3)
    capsys.readouterr()
    assert command_line.main([*words, str(tmp_path / "a.jsonl"), "--context", "4"]) == 2
    assert "a.jsonl:1: 7 tokens; a row has 4" in capsys.readouterr().err
    (tmp_path / "c.tsv").write_text("text\tlabel\nd\tfine\n")
    assert command_line.main([*words, str(tmp_path / "c.tsv")]) == 2
    assert "c.tsv:2: 'fine' is none of the labels bad, good" in capsys.readouterr().err
    assert command_line.main(["evaluate", "--model", str(directory)]) == 2
    assert "--data FILE is needed" in capsys.readouterr().err
