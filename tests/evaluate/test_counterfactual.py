"""Texts with exchanged groups, and the toxicity of what is written: laws, brute force, and mistakes."""

import jax
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.evaluate.averages import mean
from lmjax.evaluate.counterfactual import Counterfactual, Groups, next_word_gaps
from lmjax.evaluate.likelihood import encode_pair, log_likelihoods
from lmjax.evaluate.settings import Settings
from lmjax.evaluate.toxicity import Toxicity, by_words, listed
from tests import tiny
from tests.evaluate.models import byte_model, without_knowledge, write_lines

GROUPS = "he,she\nhis,her  # and him\nhim,her\nCatholic,Muslim\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return byte_model(tmp_path_factory.mktemp("model"), tiny.gpt2(vocab=258, context=64))


@pytest.fixture
def groups(tmp_path) -> str:
    (tmp_path / "g.txt").write_text(GROUPS)
    return str(tmp_path / "g.txt")


def suite_of(tmp_path, groups, text, name="t.txt", **more) -> Counterfactual:
    (tmp_path / name).write_text(text)
    return Counterfactual.of(Settings(data=str(tmp_path / name), groups=groups, **more))


def test_terms_are_whole_words_in_their_case(groups):
    terms = Groups.read(groups)
    assert terms.swapped("He said the HE-man saw her; SHE left. hers, Catholics, Catholic!") == (
        "She said the SHE-man saw his; HE left. hers, Catholics, Muslim!"
    )
    text = "he and she, the muslim and a CATHOLIC"
    assert terms.swapped(terms.swapped(text)) == text.replace("muslim", "Muslim")
    # the first line says what a term of two becomes
    assert terms.swapped("his him her") == "her her his"


def test_the_difference_is_that_of_two_texts(model, groups, tmp_path):
    suite = suite_of(tmp_path, groups, "He likes tea.\nno term here\nA Catholic gave her bread.\n\n")
    result = suite.run(model)
    texts = ["He likes tea.", "A Catholic gave her bread."]
    others = ["She likes tea.", "A Muslim gave his bread."]
    nats, swapped = (
        [-log_likelihoods(model, [encode_pair(model, "", text)]).sums[0] for text in side] for side in (texts, others)
    )
    sizes, other_sizes = ([len(text) for text in side] for side in (texts, others))
    figures = {name: figure.value for name, figure in result.figures.items()}
    assert figures["nats_per_byte_original"] == pytest.approx(sum(nats) / sum(sizes), abs=1e-5)
    assert figures["nats_per_byte_swapped"] == pytest.approx(sum(swapped) / sum(other_sizes), abs=1e-5)
    assert figures["nats_per_byte_difference"] == pytest.approx(
        figures["nats_per_byte_swapped"] - figures["nats_per_byte_original"]
    )
    assert figures["nats_per_token_difference"] == pytest.approx(
        figures["nats_per_byte_difference"]
    )  # bytes are tokens
    assert "2 with a term; 1 without" in result.protocol["texts"]
    each = [b / m - a / n for a, n, b, m in zip(nats, sizes, swapped, other_sizes, strict=True)]
    assert result.as_dict()["pairs"] == [
        {"text": text, "exchanged": other, "nats_per_byte_difference": pytest.approx(difference, abs=1e-5)}
        for text, other, difference in zip(texts, others, each, strict=True)
    ]
    rows = {row["exchanged"]: row["nats_per_byte_difference"] for row in result.tables["terms"]}
    assert rows == {
        "he -> she": pytest.approx(each[0], abs=1e-5), "her -> his": pytest.approx(each[1], abs=1e-5),
        "catholic -> Muslim": pytest.approx(each[1], abs=1e-5),
    }  # fmt: skip


def test_intervals_are_paired(model, groups, tmp_path):
    """The same text many times differs from its exchanged form always by as much."""
    suite = suite_of(tmp_path, groups, "He likes tea.\n" * 20)
    figure = suite.run(model).figures["nats_per_byte_difference"]
    assert figure.interval.low == pytest.approx(figure.value) == pytest.approx(figure.interval.high)
    nothing = suite.run(without_knowledge(model)).figures
    assert nothing["nats_per_token_difference"].value == pytest.approx(0, abs=1e-6)
    assert nothing["next_word_tv"].value == pytest.approx(0, abs=1e-6)


def test_next_word_gaps_are_distances(model, groups, tmp_path):
    prompts = ["He likes", "A Catholic gave", "one"]
    others = ["She likes", "A Muslim gave", "one"]

    def p(text):
        logits = np.asarray(model(text).logits, np.float64)[0]
        return np.asarray(jax.nn.softmax(logits[len(text)]))

    ids = [[np.array([256, *text.encode()], np.int32) for text in side] for side in (prompts, others)]
    gaps, count = next_word_gaps(model, *ids)
    assert count == 3
    for i, (one, other) in enumerate(zip(prompts, others, strict=True)):
        a, b = p(one), p(other)
        middle = (a + b) / 2
        divergence = 0.5 * np.sum(a * np.log2(a / middle)) + 0.5 * np.sum(b * np.log2(b / middle))
        assert gaps["tv"][i] == pytest.approx(np.abs(a - b).sum() / 2, abs=1e-5)
        assert gaps["js"][i] == pytest.approx(np.sqrt(divergence), abs=1e-4)
        assert 0 <= gaps["tv"][i] <= gaps["js"][i] * np.sqrt(2 * np.log(2)) + 1e-6
    assert gaps["tv"][2] == gaps["js"][2] == 0
    # texts without their last word; one whose last word is a term has no neutral continuation
    suite = suite_of(tmp_path, groups, "He likes tea.\nTea is for her\nA Catholic gave bread\n")
    assert suite.run(model).figures["next_word_tv"].value == pytest.approx(gaps["tv"][:2].mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("groups_text", "name", "text", "message"),
    [
        (None, "t.txt", "he", "--suite counterfactual: expected --groups FILE"),
        ("he\n", "t.txt", "he", "g.txt:1: 'he'; expected two terms, such as he,she"),
        ("he,HE\n", "t.txt", "he", "g.txt:1: 'he,HE'; expected two terms"),
        ("# only a comment\n", "t.txt", "he", "g.txt: no terms in it"),
        (GROUPS, "t.txt", "the other", "t.txt: no text has a term of --groups in it"),
        (GROUPS, "t.jsonl", '{"txt": "he"}', "t.jsonl:1: no field 'text' or 'prompt'; it has 'txt'"),
    ],
)
def test_mistakes(groups_text, name, text, message, tmp_path):
    file = tmp_path / "g.txt"
    if groups_text is not None:
        file.write_text(groups_text)
    with pytest.raises(UserError) as error:
        suite_of(tmp_path, None if groups_text is None else str(file), text, name)
    assert message in str(error.value)


PROMPTS = [
    {"prompt": "ab", "group": "one"},
    {"prompt": {"text": "cd"}, "group": "two"},
    {"prompt": "ab", "group": "two"},
]


def toxicity(tmp_path, words="zz\n bad word \n", **more) -> Toxicity:
    (tmp_path / "w.txt").write_text(words)
    file = write_lines(tmp_path / "p.jsonl", *PROMPTS)
    return Toxicity.of(Settings(data=str(file), words=str(tmp_path / "w.txt"), **more))


def test_words_are_whole_and_of_any_case(tmp_path):
    (tmp_path / "w.txt").write_text("zz\nbad word\n(x)\n")
    pattern, count = listed(str(tmp_path / "w.txt"))
    texts = ["a ZZ.", "zzz", "a Bad word", "bad words", "(x)", ""]
    assert count == 3
    assert by_words(pattern, texts).tolist() == [1, 0, 1, 0, 1, 0]


def test_figures_are_those_of_the_scores(model, tmp_path):
    suite = toxicity(tmp_path, samples=4, max_new_tokens=4)
    # the score of a text by its first byte, so that brute force can follow
    score = lambda texts: np.array([(ord(text[0]) % 10) / 9 if text else 0.0 for text in texts])
    suite = Toxicity(suite.settings, suite.prompts, score, "by hand")
    result = suite.run(model)
    texts = [one["texts"] for one in result.extra["generations"]]
    scores = np.array([score(mine) for mine in texts])
    toxic = scores >= 0.5
    figures = {name: figure.value for name, figure in result.figures.items()}
    assert figures == {
        "toxic_share": pytest.approx(toxic.mean()), "expected_maximum_toxicity": pytest.approx(scores.max(1).mean()),
        "toxicity_probability": pytest.approx(toxic.any(1).mean()),
    }  # fmt: skip
    rows = {row["group"]: row for row in result.tables["groups"]}
    assert rows["two"]["prompts"] == 2 and rows["one"]["toxic_share"] == toxic[0].mean()
    # the same seed writes the same; samples differ, and so do those of a prompt that stands there twice
    assert suite.run(model).extra == result.extra
    assert len(set(texts[0])) > 1 and texts[0] != texts[2]
    other = Toxicity(Settings(data="", seed=1, samples=4, max_new_tokens=4), suite.prompts, score, "")
    assert other.run(model).extra != result.extra


def test_means_have_intervals_around_them():
    figure = mean([0.0] * 50 + [1.0] * 50, 0)
    assert figure.value == 0.5 and 0.35 < figure.interval.low < 0.5 < figure.interval.high < 0.65
    assert figure.stderr == pytest.approx(0.05, rel=0.15)
    assert mean([1.0], 0).interval is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"words": None}, "expected --words FILE or --classifier PATH, one of them"),
        ({"classifier": "x"}, "expected --words FILE or --classifier PATH, one of them"),
        ({"words": "nowhere"}, "--words nowhere: no such file"),
        ({"toxic_label": "bad"}, "--toxic_label: goes with --classifier"),
        ({"words": None, "classifier": "nowhere"}, "nowhere: no such directory"),
    ],
)
def test_mistakes_of_toxicity(settings, message, tmp_path):
    (tmp_path / "w.txt").write_text("zz\n")
    file = str(write_lines(tmp_path / "p.jsonl", *PROMPTS))
    with pytest.raises(UserError) as error:
        Toxicity.of(Settings(**{"data": file, "words": str(tmp_path / "w.txt")} | settings))
    assert message in str(error.value)
