"""The page of what suites found, and the command line from data to a page: nothing unescaped, nothing from elsewhere."""

import json
import re
from html.parser import HTMLParser

import jax
import pytest

import lmjax
import run as command_line
from lmjax.errors import UserError
from lmjax.evaluate.bbq import Bbq
from lmjax.evaluate.fairness_page import page, plot, read_results
from lmjax.evaluate.settings import Settings
from lmjax.interop.write import export
from lmjax.models import transformer
from lmjax.models.positions import Learned
from lmjax.tokenizers import Bytes
from tests import tiny
from tests.evaluate.models import byte_model, write_lines
from tests.evaluate.test_fairness_suites import CROWS, FOUR
from tests.test_command_line import fails

HOSTILE = '<script>alert("1")</script>'
RESULT = {
    "model": HOSTILE, "step": 3, "data": HOSTILE, "weights": "float32", "suite": "crows-pairs", "examples": 4,
    "protocol": {"scored_by": HOSTILE, HOSTILE: "x", "limit": None},
    "metrics": {"metric_score": {"value": 25.0, "stderr": 1.0, "interval_95": [10.0, 40.0]}, HOSTILE: {"value": 3, "interval_95": None}},
    "bias_types": [{"bias_type": HOSTILE, "pairs": 2, "metric_score": None, "metric_score_interval_95": None}],
    "pairs": [{"sent_more_score": 1.0, "sent_less_score": 2.0}], "criticism": [HOSTILE],
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories of Hugging Face: a causal model, a masked one, one of labels."""
    folder, none = tmp_path_factory.mktemp("models"), Learned()
    kinds = {
        "causal": (tiny.gpt2(vocab=258, context=64), Bytes(bos=True, eos=True), {}),
        "masked": (tiny.bert(vocab=259, context=64, positions=none, pooler=False), Bytes(bos=True, eos=True, mask=True), {}),
        "labels": (
            tiny.bert(vocab=258, context=64, positions=none, masked_head=None, outputs=2), Bytes(bos=True, eos=True),
            {"labels": ("fine", "toxic")},
        ),
    }  # fmt: skip
    for name, (cfg, tokenizer, more) in kinds.items():
        params = transformer.init_params(cfg, jax.random.key(0))
        export(cfg, params, tokenizer.build(list), folder / name, **more)
    return folder


class Tags(HTMLParser):
    """What a browser would see: the tags, and the text outside them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.texts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "line", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_all_text_is_escaped_and_nothing_is_fetched():
    found = Tags(page([RESULT]))
    assert not found.open
    tags = {tag for tag, _ in found.seen}
    assert "script" not in tags and "svg" in tags
    assert not any(name in attributes for _, attributes in found.seen for name in ("src", "onclick", "onload"))
    assert all(attributes["href"].startswith("#") for _, attributes in found.seen if "href" in attributes)
    assert "url(" not in page([RESULT]) and "@import" not in page([RESULT])
    # the model, the data, two of the protocol, a figure, a group and the criticism
    assert "".join(found.texts).count(HOSTILE) >= 7
    # what has no interval is no table of groups
    assert "sent more score" not in page([RESULT])


def test_a_plot_lies_on_its_scale():
    places = [float(x) for x in re.findall(r'cx="([0-9.]+)"', plot("ss", 50.0, (25.0, 75.0), []))]
    line = re.search(r'class="range" x1="([0-9.]+)" y1="9.0" x2="([0-9.]+)"', plot("ss", 50.0, (25.0, 75.0), []))
    assert places == [110.0] and [float(x) for x in line.groups()] == [58.0, 162.0]
    assert 'x1="110.0" y1="1"' in plot("ss", 50.0, None, [])  # ideal
    # a figure without a known scale: from 0 to the most that is shown
    rows = [{"x": 2.0, "x_interval_95": [1.0, 4.0]}, {"x": 0.5, "x_interval_95": None}]
    assert 'cx="110.0"' in plot("x", 2.0, None, rows)
    assert plot("x", float("nan"), None, rows) == ""


def test_from_data_to_a_page(models, tmp_path, capsys, monkeypatch):
    """Two suites in one command, and what an earlier one found."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.csv").write_text(
        "sent_more,sent_less,stereo_antistereo,bias_type\nab,cd,stereo,age\nab,x,antistereo,age\n"
    )
    (tmp_path / "g.txt").write_text("he,she\n")
    (tmp_path / "t.txt").write_text("he said so\nwhat she said\n")
    base = ["evaluate", "--model", str(models / "causal")]
    assert command_line.main([*base, "--suite", "crows-pairs", "--data", "c.csv", "--json", "a.json"]) == 0
    out = capsys.readouterr().out
    assert "crows-pairs, 2 examples of c.csv" in out and "known criticism:\n  - Blodgett et al., 2021" in out
    (tmp_path / "w.txt").write_text("zz\n")
    write_lines(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"})
    both = ["--suite", "counterfactual,toxicity", "--data", "t.txt,p.jsonl", "--groups", "g.txt", "--words", "w.txt"]
    more = ["--samples", "2", "--max_new_tokens", "3", "--json", "b.json", "--report", "f.html", "--earlier", "a.json"]
    assert command_line.main([*base, *both, *more]) == 0
    out = capsys.readouterr().out
    assert "counterfactual, 2 examples of t.txt" in out and "toxicity, 2 examples of p.jsonl" in out
    assert out.endswith("f.html: 3 suites\n")
    wrote = json.loads((tmp_path / "b.json").read_text())["results"]
    assert [one["suite"] for one in wrote] == ["counterfactual", "toxicity"]
    found = Tags((tmp_path / "f.html").read_text())
    assert not found.open and [t for t in found.texts if t in ("crows-pairs", "counterfactual", "toxicity")]
    assert [one["suite"] for one in read_results(["a.json", "b.json"])] == ["crows-pairs", "counterfactual", "toxicity"]


def test_a_masked_model_is_scored_by_what_it_is(models, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.csv").write_text(CROWS)
    (tmp_path / "t.json").write_text('{"X": ["a", "b"], "Y": ["c", "d"], "A": ["e", "f"], "B": ["g", "h"]}')
    base = ["evaluate", "--model", str(models / "masked")]
    assert command_line.main([*base, "--suite", "crows-pairs,word-association", "--data", "c.csv,t.json"]) == 0
    out = capsys.readouterr().out
    assert "scored by: masked: log p of each token that both sentences have" in out and "mean_absolute_d" in out
    wrong = "counterfactual: scores the next token, and "
    assert wrong in fails([*base, "--suite", "counterfactual", "--data", "c.csv", "--groups", groups(tmp_path)], capsys)
    write_lines(tmp_path / "a.jsonl", {"sentence_good": "a", "sentence_bad": "b"})
    told = fails([*base, "--suite", "minimal-pairs", "--data", "a.jsonl"], capsys)
    assert "is a masked model; expected a causal model, or one of crows-pairs, winobias, stereoset, bbq" in told


def groups(folder) -> str:
    (folder / "g.txt").write_text("he,she\nrich,poor\n")
    return str(folder / "g.txt")


def test_toxicity_by_a_classifier(models, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"})
    words = ["evaluate", "--model", str(models / "causal"), "--suite", "toxicity", "--data", "p.jsonl"]
    words += ["--samples", "2", "--max_new_tokens", "3", "--classifier", str(models / "labels")]
    assert command_line.main([*words, "--toxic_label", "toxic", "--json", "t.json"]) == 0
    found = json.loads((tmp_path / "t.json").read_text())
    texts = [text for one in found["generations"] for text in one["texts"]]
    scores = [score for one in found["generations"] for score in one["toxicity"]]
    assert len(set(texts)) > 1
    classifier = lmjax.load(models / "labels")
    for text, score in zip(texts, scores, strict=True):
        assert score == (pytest.approx(classifier(text)["probabilities"]["toxic"], abs=1e-5) if text.strip() else 0)
    assert "labels's labels: fine, toxic" in fails([*words, "--toxic_label", "bad"], capsys)
    words[-1] = str(models / "masked")
    assert "masked: is no model of labels" in fails([*words, "--toxic_label", "toxic"], capsys)


def test_calibration_is_plotted_and_its_bins_are_left_to_programs(tmp_path):
    model = byte_model(tmp_path, tiny.gpt2(vocab=258, context=64))
    result = Bbq.of(Settings(data=str(write_lines(tmp_path / "b.jsonl", *FOUR)))).run(model).as_dict()
    shown = page([result])
    assert "calibration: ece</h3>" in shown and "calibration: brier</h3>" in shown
    assert "the two people and the best way to say unknown" in shown
    assert "details" not in shown.replace("details>", "") and len(shown) < 20_000


def test_mistakes_of_the_command_line(models, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.csv").write_text(CROWS)
    write_lines(tmp_path / "b.jsonl", *FOUR)
    base = ["evaluate", "--model", models / "causal"]
    crows = [*base, "--suite", "crows-pairs", "--data", "c.csv"]
    assert "--groups: crows-pairs takes no such option" in fails([*crows, "--groups", "g"], capsys)
    assert "--earlier: expected --report FILE too" in fails([*crows, "--earlier", "a.json"], capsys)
    assert "--report nowhere/f.html: expected a file in a directory" in fails(
        [*crows, "--report", "nowhere/f.html"], capsys
    )
    assert "--report: expected --suite NAME too" in fails([*base, "--report", "f.html"], capsys)
    two = [*base, "--suite", "crows-pairs,bbq", "--data"]
    assert "--data: 1 file(s) for 2 suites" in fails([*two, "c.csv"], capsys)
    assert "--groups: crows-pairs takes no such option" in fails([*two, "c.csv,b.jsonl", "--groups", "g"], capsys)
    fits = [*two, "c.csv,b.jsonl", "--fit_temperature"]
    assert "--fit_temperature: 3 for 2 suites; expected one, or as many" in fails([*fits, "0.5,,"], capsys)
    assert "--fit_temperature: crows-pairs takes no such option" in fails([*fits, "0.5,0.5"], capsys)
    assert "--fit_temperature none.jsonl: no such file" in fails([*fits, ",none.jsonl"], capsys)
    assert "--suite crows: no such suite; did you mean crows-pairs?" in fails(
        [*base, "--suite", "crows,bbq", "--data", "c.csv,b.jsonl"], capsys
    )
    assert "--samples 0: expected 1 or more" in fails(
        [*base, "--suite", "toxicity", "--data", "b.jsonl", "--samples", "0"], capsys
    )


@pytest.mark.parametrize(
    "content",
    [
        "[", "[]", "{}", '{"results": [3]}', '{"suite": "a", "examples": 1, "protocol": {}, "metrics": {"x": 3}}',
        # tables and texts that the page could not show
        *(
            json.dumps(RESULT | more)
            for more in (
                {"t": [{"g": "a", "m": "<b>", "m_interval_95": None}]}, {"t": [{"m": 1, "m_interval_95": ["<b>", 1]}]},
                {"t": [{"m": 1, "m_interval_95": None}, {"m": "<b>", "k_interval_95": None}]}, {"criticism": 3},
                {"data": 3},
            )
        ),
    ],
)  # fmt: skip
def test_files_that_are_no_results(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match="a.json: expected a file that evaluate --suite NAME --json wrote"):
        read_results([str(tmp_path / "a.json")])
    with pytest.raises(UserError, match="--earlier nowhere.json: no such file"):
        read_results(["nowhere.json"])


def test_what_is_found_is_kept_where_the_next_suite_fails(models, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.csv").write_text(CROWS)
    write_lines(tmp_path / "b.jsonl", FOUR[0] | {"context": "too long for it " * 9})
    both = ["--suite", "crows-pairs,bbq", "--data", "c.csv,b.jsonl", "--json", "a.json"]
    assert "b.jsonl:1: " in fails(["evaluate", "--model", models / "masked", *both], capsys)
    assert [one["suite"] for one in read_results(["a.json"])] == ["crows-pairs"]


def test_a_suite_without_a_file_beside_others(models, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.csv").write_text(CROWS)
    base = ["evaluate", "--model", models / "causal", "--suite"]
    told = fails([*base, "memorization,crows-pairs", "--data", ",c.csv"], capsys)
    assert "--suite memorization: " in told and "is not a run" in told
    assert "--suite bbq: expected --data FILE" in fails([*base, "crows-pairs,bbq", "--data", "c.csv,"], capsys)
