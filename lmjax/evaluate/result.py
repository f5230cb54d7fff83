"""What a suite found out, as a table and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lmjax.tasks.text_metrics import Interval, standard_error, wilson


@dataclass(frozen=True)
class Figure:
    """A value with its standard error and its interval of 95 %; None where there is none."""

    value: float
    stderr: float | None = None
    interval: Interval | None = None

    def as_dict(self) -> dict:
        return {
            "value": self.value, "stderr": self.stderr,
            "interval_95": None if self.interval is None else list(self.interval),
        }  # fmt: skip


def share(right: Sequence[bool] | np.ndarray) -> Figure:
    """How many are right, with Wilson's interval."""
    right = np.asarray(right, np.float64)
    return Figure(float(right.mean()), standard_error(right), wilson(float(right.sum()), len(right)))


@dataclass(frozen=True)
class Result:
    """examples: how many were scored. protocol: how, as (what, how). figures: by name. tables: more of them, by title,
    each a list of rows of one kind. extra: what is in the JSON alone. drawn: lines that are printed alone, by title.
    criticism: what is known to be wrong with the suite's data."""

    suite: str
    examples: int
    protocol: dict[str, str | int | None]
    figures: dict[str, Figure]
    tables: dict[str, list[dict]] = field(default_factory=dict)
    extra: dict = field(default_factory=dict)
    drawn: dict[str, list[str]] = field(default_factory=dict)
    criticism: tuple[str, ...] = ()

    def as_dict(self) -> dict:
        metrics = {name: figure.as_dict() for name, figure in self.figures.items()}
        known = {"criticism": list(self.criticism)} if self.criticism else {}
        return {
            "suite": self.suite, "examples": self.examples, "protocol": self.protocol, "metrics": metrics,
            **self.tables, **self.extra, **known,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """The protocol, the figures and the tables."""
        told = ["protocol:"]
        for what, how in self.protocol.items():
            if how is not None:
                told.append(f"  {what.replace('_', ' ')}: {one_line(how)}")
        rows = [
            {"metric": name, "value": f.value, "stderr": f.stderr, "interval_95": f.interval}
            for name, f in self.figures.items()
        ]
        told += table(rows)
        for title, rows in self.tables.items():
            told += ["", f"{title.replace('_', ' ')}:", *table(rows)]
        for title, lines in self.drawn.items():
            told += ["", f"{title}:", *lines]
        if self.criticism:
            told += ["", "known criticism:", *(f"  - {one}" for one in self.criticism)]
        return told


def one_line(value: object) -> str:
    """A template with line feeds as it is written in Python; all else as it is."""
    return repr(value) if isinstance(value, str) and not value.isprintable() else str(value)


def table(rows: list[dict]) -> list[str]:
    """Rows of the same keys, which stand above the columns; nothing for no rows."""
    if not rows:
        return []
    cells = [[str(key) for key in rows[0]], *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case Interval(low=low, high=high):
            return f"{_cell(low)} to {_cell(high)}"
        case float():
            return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.6g}"
    return one_line(value)
