"""A page has the numbers that were computed, in few bytes, and whatever a text says stays text."""

import base64
import json
import re
import zlib

import numpy as np

from lmjax.interpret.page import LEVELS, as_bytes, page, rounded

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"


def attention(layers: int, heads: int, tokens: int, sharpness: float, seed: int = 0) -> np.ndarray:
    """Causal weights of random scores: the larger the sharpness, the fewer tokens a head looks at."""
    scores = np.random.default_rng(seed).normal(0, sharpness, (layers, heads, tokens, tokens))
    weights = np.exp(np.where(np.tri(tokens, dtype=bool), scores, -np.inf))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def facts_of(tokens: list[str], **more) -> dict:
    return {
        "title": "a model", "about": "", "notes": {}, "tokens": tokens, "source": None, "chosen": len(tokens) - 1,
        "attention": [{"name": "text", "by": "tokens", "of": "tokens", "scored": True}], "head": [0, 0], "words": [],
        **more,
    }  # fmt: skip


def unpacked(html: str, part: str) -> bytes:
    (found,) = re.findall(f'id="{part}">([A-Za-z0-9+/=]*)</script>', html)
    return zlib.decompress(base64.b64decode(found))


def test_what_is_in_the_page_is_what_was_computed():
    weights = attention(2, 3, 5, 1.0)
    html = page(facts_of(["a", "é\n", HOSTILE, "\x1b[31m", "\ud800"]), [weights], causal=[True])
    told, packed = json.loads(unpacked(html, "facts")), np.frombuffer(unpacked(html, "attention"), np.uint8)
    assert told["tokens"][:4] == ["a", "é\n", HOSTILE, "\x1b[31m"] and told["levels"] == LEVELS[0]
    (kind,) = told["attention"]
    each = 5 * 6 // 2
    for layer, head, query, key in np.ndindex(2, 3, 5, 5):
        if key <= query:
            at = kind["start"] + (layer * 3 + head) * each + query * (query + 1) // 2 + key
            kept = (packed[at] / told["levels"]) ** 2
            assert abs(kept - weights[layer, head, query, key]) <= 1 / told["levels"]


def test_texts_are_in_no_markup():
    weights = attention(1, 1, 2, 1.0)
    html = page(facts_of(["a", HOSTILE], title=HOSTILE, about=HOSTILE), [weights], causal=[True])
    assert HOSTILE not in html and html.count("<script") == 3
    assert "&lt;/script&gt;" in re.search("<title>(.*)</title>", html)[1]
    # nothing is asked of any other place
    assert "default-src 'none'" in html and not re.search(r"https?://|@import|url\(", html)


def test_a_large_page_is_small_however_the_heads_look():
    for sharpness in (0.0, 1.0, 4.0):
        one = attention(1, 12, 256, sharpness)
        html = page(
            facts_of(["token"] * 256),
            [np.tile(one, (12, 1, 1, 1))[:, np.random.default_rng(0).permutation(12)]],
            causal=[True],
        )
        assert len(html) < 5_000_000


def test_steps_of_weights_that_everyone_sees():
    weights = np.array([[[[0.25, 0.75], [0.5, 0.5]]]])
    np.testing.assert_array_equal(as_bytes(weights, 100, lower=False).ravel(), [50, 87, 71, 71])
    np.testing.assert_array_equal(as_bytes(weights, 100, lower=True).ravel(), [50, 71, 71])


def test_numbers_are_short_and_what_is_none_is_null():
    assert rounded(np.array([[1 / 3, np.nan], [-np.inf, 2.0]]), 3) == [[0.333, None], [None, 2.0]]
