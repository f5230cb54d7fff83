"""Figures that are means over examples, with intervals by bootstrap over these, and tables of such figures."""

from collections.abc import Callable, Sequence

import numpy as np

from lmjax.evaluate.result import Figure
from lmjax.tasks.text_metrics import bootstrap, standard_error


def figure_of(statistic: Callable[[np.ndarray], np.ndarray], n: int, seed: int) -> Figure:
    """A statistic of n examples, which are resampled. statistic: from indices (R, n) to values (R,)."""
    (value,) = statistic(np.arange(n)[None])
    return Figure(float(value), *(bootstrap(statistic, n, seed) or (None, None)))


def mean(values: Sequence[float] | np.ndarray, seed: int) -> Figure:
    """Of one value or more."""
    values_N = np.asarray(values, np.float64)
    return figure_of(lambda index_RN: values_N[index_RN].mean(1), len(values_N), seed)


def drawn_mean(values: Sequence[float] | np.ndarray, seed: int) -> Figure:
    """The same, with the standard error of a mean of independent draws in place of the bootstrap's."""
    values_N = np.asarray(values)
    found = bootstrap(lambda index_RN: values_N[index_RN].mean(1), len(values_N), seed)
    return Figure(float(values_N.mean()), standard_error(values_N), found and found[1])


def row(kind: str, name: str, what: str, count: int, **figures: Figure | None) -> dict:
    """A row of a table of groups: {kind: name, what: count}, then each figure with its interval; None: there is
    none."""
    told = {kind: name, what: count}
    for title, figure in figures.items():
        told |= {title: figure and figure.value, f"{title}_interval_95": figure and figure.interval}
    return told


def grouped(names: Sequence[str]) -> dict[str, np.ndarray]:
    """The places of each name, in the order in which names first occur."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return {name: np.array(of_it) for name, of_it in places.items()}
