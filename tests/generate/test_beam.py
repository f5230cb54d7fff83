"""Laws of beam search; tests/parity/test_beams.py holds it beside transformers'."""

from itertools import product

import jax
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.generate.beam import Beam, beam_search, way
from lmjax.generate.decode import generate
from lmjax.generate.sampling import choice
from tests import tiny

SMALL = {"one stack": tiny.gpt2(vocab=5), "two stacks": tiny.translator(vocab=5)}
STOP = 3


def each_log_p(cfg, params, prompt, source, texts):
    """log p of each token of each continuation of the prompt, without a cache."""
    rows = np.array([[*prompt, *text] for text in texts], np.int32)
    places = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
    encoded = None
    if source is not None:
        sources = np.tile(source, (len(rows), 1))
        encoded = tiny.encode(cfg, params, sources, np.broadcast_to(np.arange(len(source)), sources.shape))
    log_p = jax.nn.log_softmax(tiny.logits(cfg, params, rows, places, source=encoded))
    first = len(prompt) - 1
    return np.take_along_axis(np.asarray(log_p)[:, first:-1], rows[:, first + 1 :, None], 2)[..., 0]


@pytest.mark.parametrize(("name", "length_penalty"), [("one stack", 1.5), ("two stacks", 0.0), ("two stacks", 1.5)])
def test_enough_beams_find_the_best_of_all_texts(name, length_penalty):
    cfg, limit = SMALL[name], 3
    params = tiny.params(cfg, 2)
    source = np.array([1, 4, 2, 2], np.int32) if cfg.encoder_layers else None
    texts = list(product(range(5), repeat=limit))
    scores = {}
    for text, log_p in zip(texts, each_log_p(cfg, params, [1, 2], source, texts), strict=True):
        length = 1 + text.index(STOP) if STOP in text else limit
        scores[text[:length]] = log_p[:length].sum() / length**length_penalty
    best = max(scores, key=scores.get)
    how = Beam(beams=75, length_penalty=length_penalty, early_stopping="never")
    sources = None if source is None else [source]
    (text,), (score,) = beam_search(
        cfg, params, [np.array([1, 2])], how, max_new_tokens=limit, stops=(STOP,), sources=sources
    )
    assert tuple(text) == tuple(i for i in best if i != STOP)
    assert score == pytest.approx(scores[best], rel=1e-4)


def test_one_beam_is_greedy_and_rows_do_not_see_one_another():
    cfg = tiny.llama()
    params = tiny.params(cfg)
    prompts = [np.array(x, np.int32) for x in ([5, 6, 7], [8], [9, 10, 11, 12, 13])]
    settings = {"max_new_tokens": 9, "known": 90}
    greedy = generate(cfg, params, prompts, how=choice(), **settings)
    one, _ = beam_search(cfg, params, prompts, Beam(beams=1, early_stopping=True), **settings)
    assert [list(x) for x in one] == [list(x) for x in greedy]
    together, scores = beam_search(cfg, params, prompts, Beam(beams=3), **settings)
    for i, prompt in enumerate(prompts):
        (alone,), (score,) = beam_search(cfg, params, [prompt], Beam(beams=3), **settings)
        assert list(alone) == list(together[i]) and score == pytest.approx(scores[i], rel=1e-5)
        assert len(alone) == 9 and max(alone) < 90
    nothing, zeros = beam_search(cfg, params, prompts, Beam(beams=2), max_new_tokens=0)
    assert [len(x) for x in nothing] == [0, 0, 0] and not zeros.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beams": 0}, "beams is 0; expected a positive number"),
        ({"beams": 10**9}, "beams is 1000000000; expected at most 1000"),
        ({"beams": 2, "temperature": 0.8, "top_k": 3}, "expected no temperature and top_k"),
        ({"beams": 2, "early_stopping": "soon"}, "early_stopping is 'soon'"),
        ({"beams": 2, "early_stopping": 1}, "early_stopping is 1; expected True"),
        ({"beams": 2, "length_penalty": float("nan")}, "length_penalty is nan"),
        ({"length_penalty": 0.6}, "beams is 1, no search"),
        ({"beams": 1, "temperature": -1.0}, "temperature is -1.0"),
    ],
)
def test_mistakes_are_one_line(settings, message):
    with pytest.raises(UserError, match=message):
        way(**{"temperature": 0.0, "top_k": None, "top_p": 1.0, "min_p": 0.0} | settings)


def test_way():
    assert way(beams=4, length_penalty=0.6, temperature=0.0, top_p=1.0) == Beam(beams=4, length_penalty=0.6)
    assert float(way(temperature=0.5).temperature) == 0.5
