"""The stories: the same bytes from the same seed, answers where they are said to be, names apart, nothing to be had by
place or frequency."""

import json
import re
from collections import Counter

import pytest

from benchmarks.qa_stories import SCHEMES, baselines, names_of, questions_of, squad


@pytest.fixture(scope="module")
def made():
    return {part: squad(part, 150, seed=1) for part in ("first", "short", "train", "dev", "test", "real")}


def test_a_seed_says_every_byte(made):
    assert json.dumps(squad("test", 150, seed=1)) == json.dumps(made["test"])
    assert json.dumps(squad("test", 150, seed=2)) != json.dumps(made["test"])


def test_answers_stand_where_they_are_said_to_stand(made):
    for dataset in made.values():
        for context, question, answer in questions_of(dataset):
            assert context.startswith(answer, question["answers"][0]["answer_start"])
            assert "{" not in context + question["question"] and question["question"].endswith("?")
        ids = [question["id"] for _, question, _ in questions_of(dataset)]
        assert len(set(ids)) == len(ids)


def test_names_of_the_parts_are_apart(made):
    names = {
        part: {name for context, _, _ in questions_of(dataset) for name in names_of(context)}
        for part, dataset in made.items()
    }
    names["train"] |= names["short"]
    for part, other in (("train", "dev"), ("train", "test"), ("dev", "test"), ("train", "real"), ("test", "real")):
        shared = {name for name in names[part] & names[other] if not name.endswith("day")}
        assert len(names[part]) > 40 and not shared, (part, other)


def test_no_syllable_is_in_two_names_of_a_story(made):
    for part in ("short", "train", "test"):
        for context, _, _ in questions_of(made[part]):
            names = {name for name in names_of(context) if not name.endswith("day")}
            firsts = [re.match(r"[A-Z][a-z]*?[aeiou]", name).group() for name in names]
            seconds = [name[len(first) :] for name, first in zip(names, firsts, strict=True) if name != first]
            assert len(set(firsts)) == len(names) and len(set(seconds)) == len(seconds), context


def test_there_are_twenty_schemes_and_half_of_the_questions_need_two_facts(made):
    assert len(SCHEMES) >= 20
    needs = Counter(question["id"].split("-")[2] for _, question, _ in questions_of(made["train"]))
    assert 0.35 < needs["2"] / needs.total() < 0.65
    for scheme in SCHEMES:
        for ask in scheme.asks:
            assert all("{" + ask.answer + "}" in form for form in scheme.facts[ask.fact]), ask.name


def test_what_does_not_read_stays_under_thirty_percent(made):
    found = baselines(made["train"], made["test"])
    assert len(found) == 6 and max(found.values()) < 0.3
