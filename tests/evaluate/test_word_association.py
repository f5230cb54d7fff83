"""Word-association tests: the published statistics on vectors made by hand, and the vectors of both kinds of models."""

import itertools
import json

import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.evaluate.settings import Settings
from lmjax.evaluate.word_association import WordAssociation, association, effect_size, p_value, vectors_of
from tests import tiny
from tests.evaluate.models import byte_model, masked_model

TEST = {"X": ["rose", "tulip"], "Y": ["ant", "wasp"], "A": ["nice", "dear"], "B": ["bad", "evil"]}


@pytest.fixture(scope="module", params=["causal", "masked"])
def model(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    return byte_model(path, tiny.gpt2(vocab=258, context=32)) if request.param == "causal" else masked_model(path)


def test_statistics_are_those_of_the_paper():
    rng = np.random.default_rng(0)
    x, y, a, b = (rng.normal(size=(n, 5)) for n in (4, 3, 3, 2))

    def cosine(u, v):
        return u @ v / np.linalg.norm(u) / np.linalg.norm(v)

    def s(w):
        return np.mean([cosine(w, v) for v in a]) - np.mean([cosine(w, v) for v in b])

    s_X, s_Y = np.array([s(w) for w in x]), np.array([s(w) for w in y])
    np.testing.assert_allclose(association(x, a, b), s_X, atol=1e-12)
    d = effect_size(s_X, s_Y)
    assert d.value == pytest.approx((s_X.mean() - s_Y.mean()) / np.std([*s_X, *s_Y], ddof=1))
    assert d.interval.low < d.value < d.interval.high
    # the paper's test statistic is the difference of sums, over all partitions of these sizes
    both, observed = [*s_X, *s_Y], s_X.sum() - s_Y.sum()
    others = [2 * sum(part) - sum(both) for part in itertools.combinations(both, 4)]
    assert p_value(s_X, s_Y) == np.mean(np.array(others) >= observed - 1e-9)


def test_what_is_exchanged_changes_its_sign(model, tmp_path):
    swapped = TEST | {"X": TEST["Y"], "Y": TEST["X"]}
    (tmp_path / "t.json").write_text(
        json.dumps({"one": TEST, "two": swapped, "same": TEST | {"A": TEST["B"], "B": TEST["A"]}})
    )
    rows = WordAssociation.of(Settings(data=str(tmp_path / "t.json"))).run(model).tables["tests"]
    assert [row["test"] for row in rows] == ["one", "two", "same"]
    assert rows[0]["d"] == pytest.approx(-rows[1]["d"]) == pytest.approx(-rows[2]["d"])
    assert abs(rows[0]["d"]) <= 2 and 0 < rows[0]["p"] <= 1


def test_extremes_are_the_largest_effect_and_the_smallest_p():
    s_X, s_Y = np.full(8, 1.0), np.full(8, -1.0)
    assert effect_size(s_X, s_Y).value == pytest.approx(2 * np.sqrt(15 / 16))
    assert p_value(s_X, s_Y) == pytest.approx(1 / 12870)  # 16 over 8
    assert p_value(s_Y, s_X) == 1
    # too many partitions to look at all: the largest of 100,000 draws, and never 0
    assert p_value(np.full(20, 1.0), np.full(20, -1.0)) == 1e-5
    drawn = np.random.default_rng(3).normal(size=40)
    assert 0.02 < p_value(drawn[:20], drawn[20:]) < 0.98


def test_vectors_of_words_and_of_sentences(model):
    texts = ("rose", "a longer sentence")
    table = np.asarray(model.params["embedding"], np.float64)
    np.testing.assert_allclose(vectors_of(model, texts, "embeddings")[0], table[list(b"rose")].mean(0), atol=1e-7)
    alone = {
        kind: np.stack([vectors_of(model, (text,), kind)[0] for text in texts]) for kind in ("mean", "first", "last")
    }
    for kind, expected in alone.items():
        np.testing.assert_allclose(vectors_of(model, texts, kind), expected, atol=1e-5)
    assert np.abs(alone["first"] - alone["last"]).max() > 0.1
    if model.cfg.causal:
        # BOS sees nothing of the text
        np.testing.assert_allclose(alone["first"][0], alone["first"][1], atol=1e-6)
    else:
        assert np.abs(alone["first"][0] - alone["first"][1]).max() > 1e-3


def test_templates_and_the_files_of_seat(model, tmp_path):
    plain = TEST | {"templates": ["This is {}.", "{}"]}
    seat = {
        long: {"category": long, "examples": TEST[short]}
        for long, short in {"targ1": "X", "targ2": "Y", "attr1": "A", "attr2": "B"}.items()
    }
    (tmp_path / "t.json").write_text(json.dumps(plain))
    (tmp_path / "sent-weat1.json").write_text(json.dumps(seat))
    one = WordAssociation.of(Settings(data=str(tmp_path / "t.json"), vectors="mean")).tests[0]
    assert one.sets["X"] == ("This is rose.", "rose", "This is tulip.", "tulip")
    other = WordAssociation.of(Settings(data=str(tmp_path / "sent-weat1.json"))).tests[0]
    assert other.name == "sent-weat1" and other.sets == {name: tuple(words) for name, words in TEST.items()}


@pytest.mark.parametrize(
    ("content", "vectors", "message"),
    [
        ("[", None, "t.json: not JSON"),
        ("[1]", None, "t.json: expected an object of tests"),
        ('{"x": 3}', None, "t.json: x: no field 'X' or 'targ1'"),
        (json.dumps(TEST | {"B": ["one"]}), None, "t.json: t: 'B' has 1 word(s)"),
        (json.dumps(TEST | {"templates": ["no place"]}), None, "a template without {}"),
        (json.dumps(TEST), "middle", "--vectors middle: expected one of embeddings, mean, first, last"),
    ],
)
def test_mistakes(content, vectors, message, tmp_path):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(UserError, match=message.replace("(", "\\(").replace(")", "\\)").replace("{", "\\{")):
        WordAssociation.of(Settings(data=str(tmp_path / "t.json"), vectors=vectors))


def test_no_effect_without_any_difference(tmp_path, model):
    (tmp_path / "t.json").write_text(json.dumps(TEST | {"A": TEST["B"]}))
    with pytest.raises(UserError, match="t.json: t: all words of X and Y are associated with A and B alike"):
        WordAssociation.of(Settings(data=str(tmp_path / "t.json"))).run(model)
