"""Scores of texts and labels against references, each by its official definition, and intervals around them.

Shares are from 0 to 1; BLEU and chrF from 0 to 100, as sacrebleu gives them.
"""

import logging
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# of the normal distribution: 95 % lie within so many standard deviations
Z_95 = 1.959963984540054
RESAMPLES = 1000
# of one block of resampled indices
BLOCK_BYTES = 1 << 26


class Interval(NamedTuple):
    """Of 95 %."""

    low: float
    high: float


def within(interval: tuple[float, float] | None, digits: int = 4) -> str:
    """Of an interval, as it stands behind its figure; "" where there is none."""
    return "" if interval is None else f" (95 %: {interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


class Corpus(NamedTuple):
    """A corpus score by sacrebleu, its error and interval by bootstrap over the texts (None of one text), and the
    signature that says all settings and the version."""

    score: float
    stderr: float | None
    interval: Interval | None
    signature: str


def normalised(answer: str) -> str:
    """SQuAD v1.1's `normalize_answer` (evaluate-v1.1.py): lower case, without ASCII punctuation, without the words a,
    an and the, white space as single spaces; in this order."""
    bare = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """SQuAD v1.1: 1 where the prediction equals one of the references, both normalised."""
    return float(any(normalised(prediction) == normalised(reference) for reference in references))


def f1(prediction: str, references: Sequence[str]) -> float:
    """SQuAD v1.1: the best F1 over the references, of the words that both have, after normalisation. As there, two
    empty answers share no word, and have 0."""
    return max(_word_f1(normalised(prediction).split(), normalised(reference).split()) for reference in references)


def _word_f1(prediction: list[str], reference: list[str]) -> float:
    shared = sum((Counter(prediction) & Counter(reference)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(reference)
    return 2 * precision * recall / (precision + recall)


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Corpus:
    """sacrebleu's corpus BLEU with its defaults (13a, smoothing exp); texts may differ in how many references they
    have."""
    from sacrebleu.metrics import BLEU

    return _corpus(BLEU(), predictions, references)


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Corpus:
    """sacrebleu's corpus chrF2 with its defaults."""
    from sacrebleu.metrics import CHRF

    return _corpus(CHRF(), predictions, references)


def _corpus(metric, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Corpus:
    # it tells its opinion of the texts on stderr
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)
    most = max(map(len, references))
    streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]
    stats_NI = np.asarray(metric._extract_corpus_statistics(list(predictions), streams))

    def scores(index_RN: np.ndarray) -> np.ndarray:
        return np.array([metric._compute_score_from_stats(stats_NI[index].sum(0).tolist()).score for index in index_RN])

    # its own bootstrap (2.6) fails where one resample's score is 0
    (score,) = scores(np.arange(len(predictions))[None])
    stderr, interval = bootstrap(scores, len(predictions)) or (None, None)
    return Corpus(float(score), stderr, interval, str(metric.get_signature()))


def confusion(true_N: np.ndarray, predicted_N: np.ndarray, labels: int) -> np.ndarray:
    """(..., labels, labels) counts: rows are the true labels, columns the predicted ones; (..., N) go in."""
    cells = true_N * labels + predicted_N
    lead = cells.shape[:-1]
    flat = cells.reshape(-1, cells.shape[-1]) + np.arange(math.prod(lead))[:, None] * labels**2
    counts = np.bincount(flat.ravel(), minlength=math.prod(lead) * labels**2)
    return counts.reshape(*lead, labels, labels)


def label_f1(counts_LL: np.ndarray) -> np.ndarray:
    """(..., L) F1 of each label from a confusion matrix; 0 for a label that neither occurs nor is predicted, as
    scikit-learn has it by default."""
    right_L = np.diagonal(counts_LL, axis1=-2, axis2=-1)
    both_L = counts_LL.sum(-1) + counts_LL.sum(-2)
    return 2 * right_L / np.maximum(both_L, 1)


def macro_f1(counts_LL: np.ndarray) -> np.ndarray:
    """(...) the plain mean of F1 over the labels that occur or are predicted (scikit-learn's f1_score, "macro")."""
    occurs_L = counts_LL.sum(-1) + counts_LL.sum(-2) > 0
    return label_f1(counts_LL).sum(-1) / np.maximum(occurs_L.sum(-1), 1)


def standard_error(values: Sequence[float] | np.ndarray) -> float | None:
    """Of the mean: the sample's standard deviation (n - 1) over sqrt(n), for shares sqrt(p (1 - p) / (n - 1)); None of
    one value."""
    n = len(values)
    return None if n < 2 else float(np.std(np.asarray(values, np.float64), ddof=1) / math.sqrt(n))


def wilson(successes: float, n: int) -> Interval:
    """Wilson's score interval of a share (1927), which stays within 0 and 1 and is right near both."""
    p, z = successes / n, Z_95
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # the share lies inside, to the bit, at 0 and 1 too
    return Interval(max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], n: int, seed: int = 0) -> tuple[float, Interval] | None:
    """(standard error, percentile interval) of a statistic of n things by RESAMPLES resamples (Efron, 1979). statistic:
    from indices (R, n), drawn with replacement, to values (R,). None of one thing."""
    if n < 2:
        return None
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK_BYTES // (8 * n))
    values = np.concatenate(
        [
            np.atleast_1d(statistic(rng.integers(0, n, (min(rows, RESAMPLES - start), n))))
            for start in range(0, RESAMPLES, rows)
        ]
    )
    low, high = np.quantile(values, [0.025, 0.975])
    return float(values.std(ddof=1)), Interval(float(low), float(high))
