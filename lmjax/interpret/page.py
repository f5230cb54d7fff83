"""What was found inside a model as one HTML file: no network, no other file, all numbers compressed in it."""

import base64
import html
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from string import Template

import numpy as np

HERE = Path(__file__).parent
# steps of the square root of a weight, from fine to coarse; of those that keep the page small enough, the finest
LEVELS = (255, 63, 31)
# bytes of base64
ROOM = 4_300_000


def page(facts: dict, attention: Sequence[np.ndarray], *, causal: Sequence[bool]) -> str:
    """The page. facts: what page.js reads, with one entry in facts["attention"] for each array. attention: (L, N, T, S)
    weights; of a causal one only what a query can see is kept. All text that a model or a user gave is inside the
    compressed part, which the page puts in as text."""
    for levels in LEVELS:
        parts, start, kinds = [], 0, []
        for one, weights_LNTS, lower in zip(facts["attention"], attention, causal, strict=True):
            part = as_bytes(weights_LNTS, levels, lower=lower)
            layers, heads, queries, keys = weights_LNTS.shape
            kinds.append(one | {
                "start": start, "layers": layers, "heads": heads, "queries": queries, "keys": keys, "causal": lower,
            })  # fmt: skip
            parts.append(part)
            start += part.size
        packed = _packed(b"".join(part.tobytes() for part in parts))
        if len(packed) <= ROOM:
            break
    told = json.dumps(facts | {"attention": kinds, "levels": levels}, separators=(",", ":"), ensure_ascii=False)
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(facts["title"]), style=style, script=script, attention=packed,
        facts=_packed(told.encode("utf-8", "replace")),
    )  # fmt: skip


def as_bytes(weights_LNTS: np.ndarray, levels: int, *, lower: bool) -> np.ndarray:
    """(L, N, T S) of the square root of each weight in so many steps; lower: of keys up to the query, row by row."""
    steps = np.rint(np.sqrt(np.clip(weights_LNTS, 0, 1)) * levels).astype(np.uint8)
    if not lower:
        return steps.reshape(*steps.shape[:2], -1)
    rows, columns = np.tril_indices(steps.shape[-1])
    return steps[:, :, rows, columns]


def _packed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 6)).decode()


def rounded(x, digits: int = 4):
    """Nested lists of an array's numbers, short in JSON; what is not a number is None."""
    if isinstance(x, np.ndarray) and x.ndim:
        return [rounded(one, digits) for one in x]
    value = float(x)
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None
