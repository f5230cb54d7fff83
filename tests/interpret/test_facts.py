"""The numbers on a page of a real model: those that the model gives when it is asked otherwise."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.inspecting import Inspected
from lmjax.interpret.capture import LOGITS, Read, capture, read
from lmjax.interpret.facts import EVERY, Wanted, written_page
from lmjax.interpret.gradients import integrated_gradients
from lmjax.models import transformer
from lmjax.tokenizers import Bytes
from tests import tiny
from tests.interpret.test_page import unpacked

VOCAB = 259
TEXT = "ab\x1bc<ab"


def model(cfg, labels=()) -> Inspected:
    tokenizer = Bytes(bos=True, eos=not cfg.causal, mask=True).build(lambda: [])
    return Inspected(cfg, transformer.init_params(cfg, jax.random.key(0)), tokenizer, "here", 256, labels)


def told(found: Inspected, rows: Read, **wanted) -> dict:
    html = written_page(found, rows, Wanted(top=3, **wanted), title="t", about="a", say=lambda what: None)
    return json.loads(unpacked(html, "facts"))


def log_p(found: Inspected, rows: Read) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(capture(found, rows, LOGITS)[LOGITS]), np.float64)[0]


@pytest.fixture(scope="module")
def causal():
    found = model(tiny.llama(vocab=VOCAB))
    return found, read(found, TEXT)


def test_a_causal_model(causal):
    found, rows = causal
    facts, log_p_TV = told(found, rows), log_p(found, rows)
    ids = rows.tokens[0]
    assert facts["tokens"] == ["<s>", *TEXT] and facts["p"][0] is None and facts["top"][0] is None
    np.testing.assert_allclose(facts["p"][1:], [np.exp(log_p_TV[t - 1, ids[t]]) for t in range(1, len(ids))], rtol=1e-3)
    best = np.argsort(-log_p_TV[-1])[:3]
    np.testing.assert_allclose([p for _, p in facts["next"]], np.exp(log_p_TV[-1, best]), rtol=1e-3)
    assert facts["lens"]["rows"] == ["embed", "layer 0", "layer 1"]
    # the lens's last row says of each place what the text's own alternatives are behind it
    for t in range(1, len(ids)):
        assert [word for word, _ in facts["top"][t]] == facts["lens"]["words"][-1][t - 1]
    # what all parts add is the logit
    logits_TV = np.asarray(capture(found, rows, LOGITS)[LOGITS])[0]
    sums = [sum(values) for values in facts["direct"]["values"]]
    wanted = [logits_TV[t, token] for t, token in enumerate([*ids[1:], best[0]])]
    np.testing.assert_allclose(sums, wanted, atol=0.05)
    assert facts["direct"]["columns"] == ["H0", "H1", "H2", "H3", "mlp"]
    # what comes next is what is explained
    assert facts["chosen"] == len(ids) and len(facts["input"]["values"]) == len(ids)
    assert repr(facts["direct"]["targets"][-1]) in facts["input"]["told"]


def test_the_token_that_is_asked_about(causal):
    found, rows = causal
    facts = told(found, rows, token=3, steps=4)
    assert facts["chosen"] == 3 and r"'\x1b'" in facts["input"]["told"]
    # nothing behind it has a part in it
    assert facts["input"]["values"][3:] == [0.0] * (len(facts["tokens"]) - 3)
    assert any(facts["input"]["values"][:3]) and "integrated gradients of 4 steps" in facts["input"]["told"]
    assert told(found, rows, token=0)["input"] is None
    with pytest.raises(UserError, match=r"\('a', 'b'\) is no text"):
        read(found, [("a", "b")])
    with pytest.raises(UserError, match="--token 99: expected -8 to 7"):
        told(found, rows, token=99)


def test_an_encoder_says_what_stands_in_hidden_places():
    found = model(tiny.bert(vocab=VOCAB))
    ids = found.tokenizer.encode_document("abcdefghij")
    facts = told(found, read(found, ids[None]))
    # by hand, the tokens of one turn
    at = [t for t in range(1, len(ids) - 1) if t % EVERY == 2]
    hidden = ids.copy()
    hidden[at] = 258
    log_p_TV = log_p(found, read(found, hidden[None]))
    np.testing.assert_allclose([facts["p"][t] for t in at], [np.exp(log_p_TV[t, ids[t]]) for t in at], rtol=2e-3)
    assert len(at) > 1 and "next" not in facts and facts["lens"]["ahead"] == 0
    # control tokens are never hidden
    assert (facts["p"][-1], facts["entropy"][-1], facts["top"][-1]) == (None, None, None)
    # a place that the user hides is the one that is explained
    asked = ids.copy()
    asked[4] = 258
    facts = told(found, read(found, asked[None]))
    assert facts["chosen"] == 4 and facts["tokens"][4] == "<mask>"
    assert facts["p"][4] is None and len(facts["top"][4]) == 3 and facts["entropy"][4] > 0


def test_a_model_of_labels_and_one_with_an_encoder():
    labelled = model(tiny.llama(vocab=VOCAB, outputs=2), labels=("no", "yes"))
    facts = told(labelled, read(labelled, TEXT))
    assert sorted(name for name, _ in facts["labels"]) == ["no", "yes"] and "lens" not in facts
    assert sum(p for _, p in facts["labels"]) == pytest.approx(1, abs=1e-3)
    translator = model(tiny.translator(vocab=VOCAB))
    facts = told(translator, read(translator, "xy", "abc"))
    assert [kind["name"].split(":")[0] for kind in facts["attention"]] == [
        "encoder",
        "of the text to itself",
        "of the text to the source",
    ]
    assert (facts["attention"][2]["queries"], facts["attention"][2]["keys"]) == (
        len(facts["tokens"]),
        len(facts["source"]),
    )
    assert "cross H1" in facts["direct"]["columns"]
    shares = integrated_gradients(translator, read(translator, "xy", "abc"))
    asked = told(translator, read(translator, "xy", "abc"), steps=32)["input"]
    np.testing.assert_allclose([*asked["source"], *asked["values"]], shares.values, rtol=0.01, atol=1e-6)


def test_behind_the_end_of_a_text_nothing_comes_next():
    cfg = tiny.llama(vocab=VOCAB)
    found = replace(model(cfg), tokenizer=Bytes(bos=True, eos=True).build(lambda: []))
    rows = Read(np.array([[256, 97, 98, 257]], np.int32))
    facts = told(found, rows)
    assert facts["next"] is None and facts["chosen"] == 3 and facts["input"]["values"][3] == 0
    assert repr(facts["tokens"][3]) in facts["input"]["told"]
