"""Confidence: the probabilities of one pass, whole characters, colours only where they can be seen."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.generate.confidence import (
    LEVELS,
    Palette,
    Piece,
    legend,
    level_of,
    lines,
    log_probabilities,
    pieces,
    summary,
)
from lmjax.models import transformer
from lmjax.tokenizers import Bytes
from tests import tiny

COLOURS, PLAIN = Palette(1 << 24), Palette(None)


@pytest.mark.parametrize("make", [tiny.llama, tiny.translator])
def test_probabilities_are_those_of_each_text_alone(make):
    cfg = make(**{"layers": 1} | ({"encoder_layers": 1} if make is tiny.translator else {}))
    params = transformer.apart(transformer.init_params(cfg, jax.random.key(0)))
    rng = np.random.default_rng(0)
    prompts, news = ([rng.integers(0, 90, n).astype(np.int32) for n in sizes] for sizes in ((3, 1, 5), (4, 9, 0)))
    sources = [rng.integers(0, 90, n).astype(np.int32) for n in (6, 2, 4)] if cfg.encoder_layers else None
    found = log_probabilities(cfg, params, prompts, news, known=90, sources=sources)

    @jax.jit
    def alone(whole, read):
        source = None if read is None else transformer.encode(cfg, params, read[None], jnp.arange(len(read))[None])
        hidden, _ = transformer.hidden(cfg, params, whole[None], jnp.arange(len(whole))[None], source=source)
        logits = transformer.logits(transformer.unembedding(cfg, params), hidden, cfg.logit_cap)[0, :, :90]
        return jax.nn.log_softmax(logits)

    assert [len(log_p) for log_p in found] == [4, 9, 0]
    for i in (0, 1):
        log_p = alone(np.concatenate([prompts[i], news[i]]), None if sources is None else sources[i])
        at = len(prompts[i]) - 1 + np.arange(len(news[i]))
        np.testing.assert_allclose(found[i], log_p[at, news[i]], atol=2e-5)


def test_pieces_are_whole_characters():
    tokenizer = Bytes().build(list)
    new = tokenizer.encode("aé!\x1b")
    found = pieces(tokenizer, tokenizer.encode("x"), new, np.log([0.5, 0.5, 0.4, 0.9, 0.1]))
    assert [piece.text for piece in found] == ["a", "é", "!", "\x1b"]
    assert [piece.probability for piece in found] == pytest.approx([0.5, 0.2, 0.9, 0.1])
    # what ends in half a character is shown as it is decoded
    assert pieces(tokenizer, new[:0], new[:2], np.zeros(2))[-1] == ("\ufffd", 1.0)


def test_colours_by_probability_and_nothing_that_moves_the_cursor():
    (line,) = lines("pro\x1b[2Jmpt", [Piece("sure", 0.95), Piece("\n", 0.6), Piece("no\x1b[31m", 0.001)], COLOURS)
    assert line.startswith("pro\\x1b[2Jmpt\x1b[30;48;2;135;215;175msure\x1b[0m\n\x1b[30;48;2;255;95;95mno\\x1b[31m")
    # only ours are left, each ended before a line does
    assert len(re.findall("\x1b\\[", line)) == 4 and line.endswith("\x1b[0m")
    for level in LEVELS:
        assert level_of(level.least) == level and f"48;5;{level.number}m" in legend(Palette(256))
    assert level_of(np.nextafter(0.9, 0)) == LEVELS[1]
    told = list(lines("p", [Piece("a\x1b", 0.25)], PLAIN))
    assert told == ["p", "0.2500  'a\\x1b'"]
    assert summary(np.log([0.5, 0.125])) == "2 tokens, perplexity 4.0000, least probable 0.1250"


def test_colours_only_on_a_terminal_that_wants_them():
    assert Palette.of({}, terminal=False) == Palette.of({"NO_COLOR": "1"}, terminal=True) == PLAIN
    assert Palette.of({"TERM": "dumb"}, terminal=True) == PLAIN
    assert Palette.of({"NO_COLOR": ""}, terminal=True) == Palette(256)
    assert Palette.of({"COLORTERM": "truecolor"}, terminal=True) == COLOURS
