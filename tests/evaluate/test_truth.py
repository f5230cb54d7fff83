"""What the suites say of how far an answer can be trusted: calibration and temperature of choices, votes of samples."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.evaluate.bbq import Bbq
from lmjax.evaluate.calibration import NAME, Scaling
from lmjax.evaluate.choices import Classification, MultipleChoice
from lmjax.evaluate.likelihood import encode_pair, log_likelihoods
from lmjax.evaluate.minimal_pairs import MinimalPairs
from lmjax.evaluate.settings import Settings
from lmjax.evaluate.writing import Generation, ids_of, write_until
from lmjax.generate.consistency import extracted, pattern, vote
from lmjax.generate.sampling import choice
from lmjax.tasks import text_metrics
from lmjax.tasks.calibration_metrics import scaled
from tests import tiny
from tests.evaluate.models import bbq_line, byte_model, write_lines

TEXTS = ("aa", "b", "ccc", "d e", "word")
QUESTIONS = [
    {"question": f"q{i}", "choices": list(TEXTS[i % 2 : i % 2 + 2 + i % 3]), "answer": (i * 7) % (2 + i % 3)}
    for i in range(12)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return byte_model(tmp_path_factory.mktemp("model"), tiny.gpt2(vocab=258, context=64))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return str(write_lines(tmp_path_factory.mktemp("data") / "c.jsonl", *QUESTIONS))


def test_probabilities_are_the_softmax_of_the_named_likelihoods(model, file):
    result = MultipleChoice.of(Settings(data=file)).run(model)
    for name, size in {"acc": lambda t: 1, "acc_norm": len}.items():
        confidence, brier = [], []
        for line in QUESTIONS:
            pairs = [encode_pair(model, f"Question: {line['question']}\nAnswer:", f" {c}") for c in line["choices"]]
            sums = log_likelihoods(model, pairs).sums / [size(c) for c in line["choices"]]
            p = np.exp(sums - sums.max()) / np.exp(sums - sums.max()).sum()
            confidence.append(p.max())
            brier.append(np.square(p - np.eye(len(p))[line["answer"]]).sum())
        (row,) = [row for row in result.tables["calibration"] if row["probabilities"] == name]
        assert row["confidence"] == pytest.approx(np.mean(confidence), rel=1e-5)
        assert row["brier"] == pytest.approx(np.mean(brier), rel=1e-5)
        (details,) = [one for one in result.extra["calibration_details"] if one["probabilities"] == name]
        assert details["accuracy"] == result.figures[name].value
        assert sum(one["examples"] for one in details["reliability"]) == 12
    last = result.tables["accuracy_of_the_most_confident"][-1]
    assert last == {"coverage": 1.0} | {name: figure.value for name, figure in result.figures.items()}
    json.dumps(result.as_dict(), allow_nan=False)
    told = "\n".join(result.lines())
    assert "accuracy of the most confident:" in told and "reliability of acc at temperature 1:" in told


def test_a_temperature_of_a_suite_is_kept_for_its_task_and_step(model, file, tmp_path, monkeypatch):
    scaling = Scaling(tmp_path, 7, "0.5")
    fitting = MultipleChoice.of(Settings(data=file, fit_temperature="0.5"))
    assert len(fitting.items) == len(fitting.fit_items) == 6
    assert {item.where for item in fitting.items}.isdisjoint(item.where for item in fitting.fit_items)
    result = replace(fitting, scaling=scaling).run(model)
    fit = result.extra["temperature"]
    assert json.loads((tmp_path / NAME).read_text())["fits"] == [fit]
    assert fit["task"] == {"suite": "multiple-choice", "template": "Question: {question}\nAnswer:", "shots": 0}
    assert all(one["nll_after"] <= one["nll_before"] for one in fit["temperatures"].values())
    assert f"kept in {tmp_path / NAME}" in result.protocol["scaling"]

    # all of the file, with the temperature that is kept; no answer changes
    whole = MultipleChoice.of(Settings(data=file))
    plain, used = whole.run(model), replace(whole, scaling=Scaling(tmp_path, 7)).run(model)
    assert used.figures == plain.figures and "fitted on 6 examples of" in used.protocol["scaling"]
    assert [row["temperature"] for row in used.tables["calibration"]] == [
        t for one in fit["temperatures"].values() for t in (1.0, one["temperature"])
    ]
    for other in (
        replace(whole, scaling=Scaling(tmp_path, 8)), replace(whole, scaling=Scaling(tmp_path, 7, uncalibrated=True)),
        replace(whole, scaling=Scaling(tmp_path, 7), template="{question}"),
    ):  # fmt: skip
        assert other.run(model).tables["calibration"] == plain.tables["calibration"]
    # a file of its own, whose labels may not be others
    lines = [{"text": text, "label": i % 2} for i, text in enumerate("abcdefgh")]
    data, apart = (str(write_lines(tmp_path / name, *lines)) for name in ("l.jsonl", "fit.jsonl"))
    settings = Settings(data=data, fit_temperature=apart)
    fitted = replace(Classification.of(settings), scaling=Scaling(tmp_path, 7, apart)).run(model)
    assert fitted.examples == 8 and len(json.loads((tmp_path / NAME).read_text())["fits"]) == 2
    odd = write_lines(tmp_path / "odd.jsonl", {"text": "a", "label": "new"})
    with pytest.raises(UserError, match="odd.jsonl:1: 'label' is 'new'; expected one of '0', '1'"):
        Classification.of(replace(settings, fit_temperature=str(odd)))
    # not on what is reported on
    with pytest.raises(UserError, match="--fit_temperature: .*l.jsonl:1 is reported on too"):
        Classification.of(replace(settings, fit_temperature=data))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--fit_temperature: l.jsonl:1 is reported on too"):
        Classification.of(replace(settings, fit_temperature="l.jsonl"))


def test_pairs_and_questions_of_bias_have_a_temperature_too(model, tmp_path):
    pairs = [{"sentence_good": a, "sentence_bad": b, "UID": "u"} for a, b in zip("abcdefgh", "ijklmnop", strict=True)]
    questions = [bbq_line(context=f"{name} waits.", label=i % 3) for i, name in enumerate("abcdefgh")]
    for suite, lines in ((MinimalPairs, pairs), (Bbq, questions)):
        data, apart = (str(write_lines(tmp_path / name, *lines)) for name in ("data.jsonl", "fit.jsonl"))
        shared = suite.of(Settings(data=data, fit_temperature="0.5"))
        result = replace(shared, scaling=Scaling(tmp_path, 7, "0.5")).run(model)
        fit = result.extra["temperature"]
        assert (result.examples, fit["examples"]) == (4, 4)
        # fitted on a file of its own: what that leaves of the same pairs is all of them
        settings = Settings(data=data, fit_temperature=apart)
        fitted = replace(suite.of(settings), scaling=Scaling(tmp_path, 7, apart)).run(model)
        assert fitted.examples == 8 and fitted.extra["temperature"]["examples"] == 8
        plain, kept = suite.of(Settings(data=data)), Scaling(tmp_path, 7)
        used = replace(plain, scaling=kept).run(model)
        assert used.figures == plain.run(model).figures == fitted.figures
        assert used.tables["calibration"] == fitted.tables["calibration"] and len(used.tables["calibration"]) == 2
        assert "fitted on 8 examples of" in used.protocol["scaling"]
    fits = json.loads((tmp_path / NAME).read_text())["fits"]
    assert [one["task"]["suite"] for one in fits] == ["minimal-pairs", "bbq"]


def test_a_share_of_minimal_pairs_is_of_each_paradigm(model, tmp_path):
    """The figure is a mean over paradigms: none may be lost."""
    forms = {"x": ("is", "are"), "y": ("are", "is"), "z": ("was", "were")}
    lines = [
        {"sentence_good": f"{a} {good}", "sentence_bad": f"{a} {bad}", "UID": uid}
        for uid, (good, bad) in forms.items()
        for a in "abcd"
    ]
    suite = MinimalPairs.of(Settings(data=str(write_lines(tmp_path / "d.jsonl", *lines)), fit_temperature="0.25"))
    assert [pair.paradigm for pair in suite.fit_pairs] == ["x", "y", "z"]
    rows = replace(suite, scaling=Scaling(fit="0.25")).run(model).tables["paradigms"]
    assert [(row["paradigm"], row["pairs"]) for row in rows] == [("x", 3), ("y", 3), ("z", 3)]
    few = str(write_lines(tmp_path / "few.jsonl", *lines[:5]))
    with pytest.raises(UserError, match="--fit_temperature 0.25: of 1 examples of y that is 0; expected at least one"):
        MinimalPairs.of(Settings(data=few, fit_temperature="0.25"))


def test_a_model_that_is_no_run_keeps_nothing(model, file):
    result = replace(MultipleChoice.of(Settings(data=file, fit_temperature="0.5")), scaling=Scaling(fit="0.5")).run(
        model
    )
    assert "the model is no run, and nothing keeps it" in result.protocol["scaling"]
    log_p = np.log([[0.5, 0.5]])
    assert scaled(log_p, 3.0) == pytest.approx(log_p)


def test_votes():
    assert vote(["The cat.", "dog", "cat", None]) == ("The cat.", 0.5)
    assert vote(["b", "a", "a", "b"]) == ("b", 0.5)
    assert vote([None, None]) == ("", 0.0)
    number = pattern(r"answer is (\d+)")
    assert extracted("the answer is 3, no, the answer is 42.", number) == "42"
    assert extracted("nothing", number) is None and extracted(" all ", None) == "all"
    assert extracted("1 and 2", pattern(r"\d")) == "2"
    with pytest.raises(UserError, match=r"--answer '\(': no regular expression"):
        pattern("(")


def test_samples_vote(model, tmp_path):
    prompts = ["the", "a model"]
    drawn = choice(temperature=3.0)
    texts = write_until(model, [ids_of(model, p) for p in prompts for _ in range(5)], ("\n\n",), 1, drawn, 4).texts
    votes = [vote([text.strip() for text in texts[i : i + 5]]) for i in (0, 5)]
    lines = [{"prompt": prompts[0], "reference": votes[0].answer or "zz"}, {"prompt": prompts[1], "reference": "zz"}]
    data = str(write_lines(tmp_path / "g.jsonl", *lines))
    settings = Settings(data=data, max_new_tokens=1, samples=5, sample_temperature=3.0, seed=4)
    result = Generation.of(settings).run(model)
    assert result.extra["samples"] == [texts[:5], texts[5:]] and len(set(texts)) > 2
    assert result.extra["texts"] == [one.answer for one in votes]
    assert result.extra["agreement"] == [one.agreement for one in votes]
    right = [text_metrics.exact_match(one.answer, [line["reference"]]) for one, line in zip(votes, lines, strict=True)]
    assert result.figures["exact_match"].value == np.mean(right)
    single = [text_metrics.exact_match(text, [lines[i // 5]["reference"]]) for i, text in enumerate(texts)]
    assert result.figures["single_exact_match"].value == pytest.approx(np.mean(single))
    gap = np.abs(np.array(right) - [one.agreement for one in votes])
    if votes[0].agreement != votes[1].agreement:
        assert result.figures["ece_of_agreement"].value == pytest.approx(gap.mean())
    for option in ({"sample_temperature": 1.0}, {"answer": "x"}):
        with pytest.raises(UserError, match="expected --samples K too"):
            Generation.of(Settings(data=data, **option))
