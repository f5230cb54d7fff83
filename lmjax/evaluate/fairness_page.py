"""One page of what suites found out about a model: figures with their intervals as plots, how they were measured, and
what is known to be wrong with each. It needs no network, and all text in it is escaped."""

import json
import math
from collections.abc import Sequence
from html import escape

from lmjax.data.files import decode, read_bytes
from lmjax.errors import UserError, path_text
from lmjax.evaluate.result import one_line
from lmjax.places import place

INTERVAL = "_interval_95"
# what a figure can be, from where to where, and what is ideal where something is
SCALES = {
    "metric_score": (0, 100, 50), "stereotype_score": (0, 100, 50), "antistereotype_score": (0, 100, 50),
    "neutral": (0, 100, None), "lms": (0, 100, 100), "ss": (0, 100, 50), "icat": (0, 100, 100), "s_amb": (-1, 1, 0),
    "s_dis": (-1, 1, 0), "acc_amb": (0, 1, 1), "acc_disamb": (0, 1, 1), "acc_pro": (0, 1, 1), "acc_anti": (0, 1, 1),
    "acc_replaced": (0, 1, 1), "gap": (-1, 1, 0), "d": (-2, 2, 0), "mean_absolute_d": (0, 2, 0),
    "next_word_tv": (0, 1, 0), "next_word_js": (0, 1, 0), "toxic_share": (0, 1, 0),
    "expected_maximum_toxicity": (0, 1, 0), "toxicity_probability": (0, 1, 0), "accuracy": (0, 1, 1),
    "ece": (0, 1, 0), "brier": (0, 2, 0), "aurc": (0, 1, 0),
}  # fmt: skip
WIDTH, HEIGHT, EDGE = 220, 18, 6
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d1d9e0; --mark: #0b6bcb; --ground: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9da7b1; --line: #3d444d; --mark: #58a6ff; --ground: #0d1117; }
}
body { margin: 0 auto; max-width: 60rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--ground); }
h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; white-space: nowrap; font-variant-numeric: tabular-nums; }
th, td:first-child { white-space: normal; }
@media (max-width: 40rem) { th, td { padding-right: .4rem; } table { font-size: .8rem; } }
th { color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line); }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 1rem; color: var(--soft); overflow-wrap: anywhere; }
summary { cursor: pointer; margin: .6rem 0; }
.known { border-left: 3px solid var(--mark); padding: .1rem 0 .1rem 1rem; }
svg { width: clamp(5rem, 28vw, 14rem); height: auto; vertical-align: middle; }
svg line { vector-effect: non-scaling-stroke; }
svg .axis { stroke: var(--line); } svg .ideal { stroke: var(--ink); stroke-dasharray: 3 2; }
svg .range { stroke: var(--mark); stroke-width: 2; } svg circle { fill: var(--mark); }
"""


def page(results: Sequence[dict]) -> str:
    """results: as `Result.as_dict` has them, with the model, the data and the step that they are of."""
    models = list(dict.fromkeys(_told(result) for result in results))
    body = [
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<title>Fairness</title>", f"<style>{STYLE}</style>", "</head>", "<body>", "<h1>Fairness</h1>",
        f"<p>{'; '.join(map(escape, models))}</p>",
        "<p>No figure here says that a model is fair. Each says how it does in one test, with an interval of 95 %; the "
        "dashed line is what would be ideal there. Read what is known to be wrong with a test before its figures.</p>",
        "<ul>",
        *(f'<li><a href="#s{i}">{escape(str(one["suite"]))}</a></li>' for i, one in enumerate(results)),
        "</ul>",
    ]  # fmt: skip
    for number, result in enumerate(results):
        body += _section(f"s{number}", result)
    return "\n".join([*body, "</body>", "</html>", ""])


def read_results(paths: Sequence[str]) -> list[dict]:
    """The results in files that --json wrote. Raises UserError for another file."""
    found = []
    for path in paths:
        file = place(path)
        if not file.is_file():
            raise UserError(f"--earlier {path_text(path)}: no such file")
        try:
            data = json.loads(decode(read_bytes(file), file, "strict"))
        except (ValueError, RecursionError):
            data = None
        several = data.get("results") if isinstance(data, dict) else None
        for one in several if isinstance(several, list) else [data]:
            if not _is_result(one):
                raise UserError(f"--earlier {path_text(path)}: expected a file that evaluate --suite NAME --json wrote")
            found.append(one)
    return found


def _is_result(one) -> bool:
    if not isinstance(one, dict) or not {"suite", "examples", "protocol", "metrics"} <= one.keys():
        return False
    parts = isinstance(one["protocol"], dict) and isinstance(one["metrics"], dict) and type(one["examples"]) is int
    told = isinstance(one.get("data"), str | None) and isinstance(one.get("criticism"), list | None)
    tables = [table for table in one.values() if _is_plotted(table)]
    return (
        parts
        and told
        and all(isinstance(figure, dict) and _is_figure(figure) for figure in one["metrics"].values())
        and all(row.keys() == table[0].keys() and _is_row(row) for table in tables for row in table)
    )


def _is_figure(figure: dict) -> bool:
    return isinstance(figure.get("value"), int | float) and _range(figure.get("interval_95")) != ()


def _is_row(row: dict) -> bool:
    """Whether all that has an interval is a number, or nothing."""
    intervals = {name.removesuffix(INTERVAL): value for name, value in row.items() if name.endswith(INTERVAL)}
    return all(
        isinstance(row.get(name), int | float | None) and _range(value) != () for name, value in intervals.items()
    )


def _is_plotted(table) -> bool:
    """Whether these are rows of groups, whose figures have intervals; what has lists in it is for programs."""
    rows = table if isinstance(table, list) else []
    return bool(rows) and all(isinstance(row, dict) and _has_interval(row) and _is_flat(row) for row in rows)


def _told(result: dict) -> str:
    """The model of a result."""
    step = result.get("step")
    after = "" if step is None else f" after step {step}"
    return f"{result.get('model', 'a model')}{after}, weights {result.get('weights', 'float32')}"


def _section(anchor: str, result: dict) -> list[str]:
    told = [f'<h2 id="{anchor}">{escape(str(result["suite"]))}</h2>']
    data = result.get("data")
    of = f" of {path_text(data)}" if data else ""
    told.append(f"<p>{escape(_told(result))}: {result['examples']:,} examples{escape(of)}</p>")
    rows = [
        {"figure": name, name: figure["value"], name + INTERVAL: figure.get("interval_95")}
        for name, figure in result["metrics"].items()
    ]
    told += ['<div class="wide"><table>', "<tr><th>figure</th><th>value</th><th></th><th>95 %</th></tr>"]
    told += [_figure_row(row["figure"], row) for row in rows]
    told += ["</table></div>"]
    for title, table in result.items():
        if _is_plotted(table):
            told += _table(title, table)
    if result.get("criticism"):
        told += ["<h3>Known criticism</h3>", '<div class="known"><ul>']
        told += [f"<li>{escape(str(one))}</li>" for one in result["criticism"]] + ["</ul></div>"]
    told += ["<details><summary>How it was measured</summary><dl>"]
    for what, how in result["protocol"].items():
        if how is not None:
            told.append(f"<dt>{escape(str(what).replace('_', ' '))}</dt><dd>{escape(one_line(how))}</dd>")
    return [*told, "</dl></details>"]


def _figure_row(name: str, row: dict) -> str:
    value, interval = row[name], _range(row.get(name + INTERVAL))
    cells = [escape(name.replace("_", " ")), _number(value), plot(name, value, interval, [row]), _interval(interval)]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _table(title: str, rows: list[dict]) -> list[str]:
    """Each figure of a table in its own, a line for each group."""
    plotted = [key.removesuffix(INTERVAL) for key in rows[0] if key.endswith(INTERVAL)]
    plain = [key for key in rows[0] if key.removesuffix(INTERVAL) not in plotted]
    told = []
    for name in plotted:
        heads = [*plain, name, "", "95 %"]
        told.append(f"<h3>{escape(title.replace('_', ' '))}: {escape(name.replace('_', ' '))}</h3>")
        told.append('<div class="wide"><table><tr>')
        told += [f"<th>{escape(str(head).replace('_', ' '))}</th>" for head in heads] + ["</tr>"]
        for row in rows:
            value, interval = row.get(name), _range(row.get(name + INTERVAL))
            shown = "" if value is None else plot(name, value, interval, rows)
            cells = [*(escape(_number(row.get(key))) for key in plain), _number(value), shown, _interval(interval)]
            told.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        told.append("</table></div>")
    return told


def plot(name: str, value: float, interval: tuple[float, float] | None, rows: Sequence[dict]) -> str:
    """A figure and its interval on the scale that it has, or that all of these rows need, as SVG."""
    if not math.isfinite(value):
        return ""
    low, high, ideal = SCALES.get(name) or _scale(name, rows)

    def x(number: float) -> str:
        inside = min(max(number, low), high)
        return f"{EDGE + (WIDTH - 2 * EDGE) * (inside - low) / ((high - low) or 1):.1f}"

    middle, parts = HEIGHT / 2, []
    parts.append(f'<line class="axis" x1="{x(low)}" y1="{middle}" x2="{x(high)}" y2="{middle}"/>')
    if ideal is not None:
        parts.append(f'<line class="ideal" x1="{x(ideal)}" y1="1" x2="{x(ideal)}" y2="{HEIGHT - 1}"/>')
    if interval:
        parts.append(f'<line class="range" x1="{x(interval[0])}" y1="{middle}" x2="{x(interval[1])}" y2="{middle}"/>')
    parts.append(f'<circle cx="{x(value)}" cy="{middle}" r="4"/>')
    ends = f"{_number(value)} on a scale from {_number(low)} to {_number(high)}"
    return (
        f'<svg role="img" aria-label="{ends}" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f"<title>{ends}</title>{''.join(parts)}</svg>"
    )


def _scale(name: str, rows: Sequence[dict]) -> tuple[float, float, float | None]:
    """From the least to the most of what is shown, with 0; a difference is ideal at 0."""
    ends = [0.0]
    for row in rows:
        ends += [row[name]] if row.get(name) is not None else []
        ends += _range(row.get(name + INTERVAL)) or ()
    return min(ends), max(ends), 0.0 if "difference" in name else None


def _range(value) -> tuple[float, float] | tuple[()] | None:
    """Two ends, None where there are none, () where it is something else."""
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        return ()
    return tuple(value) if all(isinstance(end, int | float) and math.isfinite(end) for end in value) else ()


def _has_interval(row: dict) -> bool:
    return any(str(key).endswith(INTERVAL) for key in row)


def _is_flat(row: dict) -> bool:
    return not any(isinstance(value, list | dict) for key, value in row.items() if not str(key).endswith(INTERVAL))


def _interval(interval) -> str:
    return f"{_number(interval[0])} to {_number(interval[1])}" if interval else ""


def _number(value) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
