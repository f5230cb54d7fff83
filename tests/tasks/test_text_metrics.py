"""Scores by their official definitions, and intervals by the equations that define them."""

import itertools
import math

import numpy as np
import pytest
import sacrebleu

from lmjax.tasks import text_metrics as tm


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # by hand, from normalize_answer of SQuAD's evaluate-v1.1.py: lower, remove_punc, remove_articles, white_space_fix
        ("The Cat", "cat"),
        ("an apple, a pear and the plum.", "apple pear and plum"),
        ("a-b", "ab"),  # punctuation goes first, so this "a" is no article
        ("the-end", "theend"),
        ("A.", ""),
        ("theatre anthem a", "theatre anthem"),
        ("  two \t\n words ", "two words"),
        ("$1,000.50", "100050"),
        ("don't", "dont"),
        ("«Quote» – dash", "«quote» – dash"),  # string.punctuation is ASCII alone
        ("ÉCOLE", "école"),
        ("the\u00a0end", "end"),
    ],
)
def test_squad_normalisation(answer, expected):
    assert tm.normalised(answer) == expected


def test_exact_match_and_f1_take_the_best_reference():
    assert tm.exact_match("The cat!", ["dog", "cat"]) == 1
    assert tm.exact_match("cats", ["cat", "dog"]) == 0
    # 2 of 3 words shared with a reference of 4: 2 * (2/3) (2/4) / (2/3 + 2/4)
    assert tm.f1("big black cat", ["x", "big cat sat down"]) == pytest.approx(4 / 7)
    # a word counts as often as both have it
    assert tm.f1("cat cat cat", ["cat cat dog"]) == pytest.approx(2 / 3)
    assert tm.f1("dog", ["cat"]) == 0
    assert tm.f1("the", ["a"]) == 0 and tm.exact_match("the", ["a"]) == 1  # as the official script has it


def test_bleu_and_chrf_are_sacrebleus():
    texts = ["The cat sat on the mat.", "There is a dog in the garden."]
    references = [["The cat is sitting on the mat.", "A cat sat on the mat."], ["There is a dog in a garden."]]
    streams = [[r[0] for r in references], [references[0][1], None]]
    bleu, chrf = tm.bleu(texts, references), tm.chrf(texts, references)
    assert bleu.score == pytest.approx(sacrebleu.corpus_bleu(texts, streams).score, abs=1e-9) and bleu.score > 10
    assert chrf.score == pytest.approx(sacrebleu.corpus_chrf(texts, streams).score, abs=1e-9)
    assert "nrefs:var|" in bleu.signature and "tok:13a|smooth:exp|version:" in bleu.signature
    assert "nc:6|nw:0" in chrf.signature
    assert bleu.interval.low <= bleu.score <= bleu.interval.high
    assert tm.bleu(texts[:1], references[:1]).interval is None


@pytest.mark.parametrize(("right", "n"), [(0, 7), (1, 12), (50, 100), (99, 100), (7, 7)])
def test_wilsons_interval_solves_its_equation(right, n):
    """Its ends are the shares q from which right / n lies 1.96 standard errors of q away."""
    low, high = tm.wilson(right, n)
    for q in (low, high):
        assert (right / n - q) ** 2 == pytest.approx(tm.Z_95**2 * q * (1 - q) / n, abs=1e-12)
    assert low <= right / n <= high and 0 <= low < high <= 1


def test_standard_error_of_shares():
    right = np.array([1] * 30 + [0] * 70)
    assert tm.standard_error(right) == pytest.approx(math.sqrt(0.3 * 0.7 / 99))
    assert tm.standard_error([1]) is None


def test_bootstrap_of_a_mean_is_what_theory_says(monkeypatch):
    values = np.random.default_rng(0).normal(3, 2, 400)
    stderr, (low, high) = tm.bootstrap(lambda index: values[index].mean(1), 400)
    assert stderr == pytest.approx(tm.standard_error(values), rel=0.08)
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 * stderr, values.mean() + 1.96 * stderr), abs=0.25 * stderr
    )
    assert tm.bootstrap(lambda index: values[index].mean(1), 400)[0] == stderr
    assert tm.bootstrap(lambda index: values[index].mean(1), 1) is None
    # in blocks it is the same stream of draws
    monkeypatch.setattr(tm, "BLOCK_BYTES", 8 * 400 * 7)
    assert tm.bootstrap(lambda index: values[index].mean(1), 400)[0] == stderr


def test_confusion_and_macro_f1_by_hand():
    true, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 2])
    counts = tm.confusion(true, predicted, 4)
    assert counts.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    # F1 = 2 tp / (2 tp + fp + fn): 4/5, 2/4, 2/3; the fourth label is not there and counts not
    assert tm.label_f1(counts) == pytest.approx([4 / 5, 1 / 2, 2 / 3, 0])
    assert tm.macro_f1(counts) == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)


def test_many_confusion_matrices_at_once_are_each_one():
    rng = np.random.default_rng(1)
    true, predicted = rng.integers(0, 3, (5, 20)), rng.integers(0, 3, (5, 20))
    together = tm.confusion(true, predicted, 3)
    for row in range(5):
        for i, j in itertools.product(range(3), repeat=2):
            assert together[row, i, j] == sum((true[row] == i) & (predicted[row] == j))
    assert tm.macro_f1(together).shape == (5,)
