"""SQuAD's figures of answers: the best reference counts, and a question without an answer wants none."""

import pytest

from lmjax.tasks.answer_metrics import answer_figures


def test_by_hand():
    figures = answer_figures(["The red ball!", "in Rome", "x"], [["red ball"], ["Paris", "Rome"], ["y"]])
    # "in rome" and "rome": precision 1/2, recall 1
    assert (figures.exact_match, figures.f1) == pytest.approx((1 / 3, (1 + 2 / 3 + 0) / 3))
    low, high = figures.exact_match_interval
    # Wilson's interval of 1 of 3
    assert (low, high) == pytest.approx((0.0615, 0.7923), abs=1e-4)
    assert figures.f1_interval[0] < figures.f1 < figures.f1_interval[1]
    assert figures.answered is None
    assert figures.lines()[0].endswith("3 questions")


def test_questions_without_an_answer():
    figures = answer_figures(["", "Rome", "", "Rome"], [[], [], ["Rome"], ["Rome"]])
    assert (figures.exact_match, figures.f1) == (0.5, 0.5)
    assert figures.answered == (2, 0.5, 0.5) and figures.unanswered == (2, 0.5, 0.5)
    assert "2 without: exact match 0.5000" in figures.lines()[-1]


def test_what_normalisation_leaves_nothing_of_is_no_answer():
    figures = answer_figures(["the", "The", "The"], [[], ["The"], ["The", "Rome"]])
    assert (figures.exact_match, figures.f1) == pytest.approx((2 / 3, 2 / 3))


def test_one_question_has_no_spread():
    assert answer_figures(["a b"], [["b"]]).f1_interval is None
