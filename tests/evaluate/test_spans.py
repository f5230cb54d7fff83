"""The best span over all windows of a question is the one that a search through every span finds."""

import numpy as np
import pytest

from lmjax.data.sources import Record
from lmjax.evaluate.spans import best_answer
from lmjax.tasks.span_qa import SpanQA
from lmjax.tokenizers import Bytes

TOKENIZER = Bytes(bos=True, eos=True).build(list)
CONTEXT = "ab é cde fgh 😀 ijkl mnop"


def asked_of(task, length=20):
    one = Record("n", "f:1", {"context": CONTEXT, "question": "q?"})
    return task.asked(one, TOKENIZER, length)


def by_search(task, asked, logits):
    """(score, first, last) of the context's tokens, and the sum of exp(score), by trying all: a span counts in the
    window in which its first token has most of what stands around it."""
    found, total = [], 0.0
    for first in range(len(asked.spans_S2)):
        context = []
        for window, start in enumerate(asked.starts):
            stop = min(start + asked.room, len(asked.spans_S2))
            if start <= first < stop:
                context.append((min(first - start, stop - 1 - first) + 0.01 * (stop - start), -window, start, stop))
        _, window, start, stop = max(context)
        logits_TC = logits[-window].astype(np.float64)
        for last in range(first, min(stop, first + task.longest_answer)):
            score = logits_TC[asked.before + first - start, 0] + logits_TC[asked.before + last - start, 1]
            found.append((score, first, last))
            total += np.exp(score)
    return max(found), total


@pytest.mark.parametrize("seed", range(8))
def test_the_best_span_is_found(seed):
    rng = np.random.default_rng(seed)
    task = SpanQA(longest_answer=int(rng.integers(1, 6)), stride=int(rng.integers(1, 16)))
    asked = asked_of(task)
    logits = [rng.normal(size=(len(ids), 2)).astype(np.float32) * 3 for ids, _ in asked.windows]
    assert len(logits) > 1
    (score, first, last), total = by_search(task, asked, logits)
    found = best_answer(task, asked, logits)
    text = CONTEXT[asked.spans_S2[first, 0] : asked.spans_S2[last, 1]]
    assert found["answer"] == text.strip()
    assert found["probability"] == pytest.approx(np.exp(score) / total)
    assert CONTEXT[found["start"] :].startswith(found["answer"])


def test_no_answer_where_the_first_token_wins_by_more_than_the_threshold():
    for threshold, expected in ((1.5, "ab"), (0.5, "")):
        task = SpanQA(longest_answer=2, null_threshold=threshold)
        asked = asked_of(task, length=64)
        (ids, _), = asked.windows  # fmt: skip
        logits_TC = np.full((len(ids), 2), -50.0, np.float32)
        logits_TC[asked.before, 0], logits_TC[asked.before + 1, 1] = 1.0, 1.0
        # 3 against 2
        logits_TC[0] = 1.5
        found = best_answer(task, asked, [logits_TC])
        assert found["answer"] == expected
        e = np.exp(1.0)
        assert found["probability"] == pytest.approx(e / (1 + e) if expected == "" else 1 / (1 + e))
        assert found["start"] == (None if expected == "" else 0)


def test_the_least_null_score_of_all_windows_counts():
    task = SpanQA(longest_answer=2, null_threshold=0.0)
    asked = asked_of(task)
    logits = [np.zeros((len(ids), 2), np.float32) for ids, _ in asked.windows]
    for logits_TC in logits[1:]:
        logits_TC[0] = 5.0
    logits[0][0] = -1.0
    assert best_answer(task, asked, logits)["answer"] != ""
