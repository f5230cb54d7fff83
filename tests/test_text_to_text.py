"""An encoder-decoder from Python and from the command line."""

import jax
import numpy as np
import pytest

import lmjax
import run as command_line
from lmjax.errors import UserError
from lmjax.generate.beam import Beam, beam_search
from lmjax.interop.write import export
from lmjax.models import transformer
from lmjax.tokenizers import Bytes
from tests import tiny

CFG = tiny.t5(vocab=258, context=64)
START, EOS = 0, 257


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("t5") / "model"
    params = transformer.init_params(CFG, jax.random.key(0))
    export(CFG, params, Bytes(eos=True).build(list), path, start=START)
    return path


@pytest.fixture(scope="module")
def model(directory):
    return lmjax.load(directory)


def logits_of(model, source, target):
    source, target = (np.array([ids], np.int32) for ids in (source, target))
    places = [np.arange(x.shape[1])[None] for x in (source, target)]
    encoded = tiny.encode(model.cfg, model.params, source, places[0])
    return np.asarray(tiny.logits(model.cfg, model.params, target, places[1], source=encoded))[0]


def test_texts_and_ids(model):
    """Texts of other lengths side by side give what each gives alone; EOS behind both, start before a target."""
    out = model(["hello", "a"], source=["wie geht", "x"])
    assert out.tokens.tolist() == [[START, *b"hello", EOS], [START, *b"a", EOS, 0, 0, 0, 0]]
    assert out.lengths.tolist() == [7, 3]
    for i, (source, target) in enumerate(((b"wie geht", b"hello"), (b"x", b"a"))):
        expected = logits_of(model, [*source, EOS], [START, *target, EOS])
        np.testing.assert_allclose(out.logits[i, : len(expected)], expected, atol=2e-5 * np.abs(expected).max())
    ids = model(np.array([[7, 8, 9]]), source=np.array([[1, 2]]))
    np.testing.assert_allclose(ids.logits[0], logits_of(model, [1, 2], [7, 8, 9]), atol=1e-4)
    score = model.score("hello", source="wie geht")
    log_p = jax.nn.log_softmax(logits_of(model, [*b"wie geht", EOS], [START, *b"hello", EOS]))
    expected = sum(float(log_p[t, token]) for t, token in enumerate([*b"hello", EOS]))
    assert score.log_probability == pytest.approx(expected, rel=1e-5)


def test_generate(model):
    """Greedily each token is the most probable one after those before it; beams as the search itself; draws by seed."""
    source = [*b"wie geht", EOS]
    expected = list(model.generate(np.array([source]), max_new_tokens=6)[0])
    best = logits_of(model, source, [START, *expected]).argmax(-1).tolist()
    assert best[: len(expected)] == expected and (len(expected) == 6 or best[len(expected)] == EOS)
    assert model.generate("wie geht", max_new_tokens=6) == model.tokenizer.decode(expected)
    how = Beam(beams=3, length_penalty=0.6)
    (text,), _ = beam_search(
        model.cfg, model.params, [np.array([START])], how, max_new_tokens=6, stops=(EOS,), sources=[np.array(source)]
    )
    found = model.generate(["wie geht", "x"], max_new_tokens=6, beams=3, length_penalty=0.6)
    assert found[0] == model.tokenizer.decode(text) and len(found) == 2
    # texts are drawn by the source: another one beside it changes nothing
    both, alone = (
        model.generate(x, max_new_tokens=6, temperature=1.0, seed=4) for x in (["wie geht", "x"], ["wie geht"])
    )
    assert both[0] == alone[0] != model.generate("wie geht", max_new_tokens=6, temperature=1.0, seed=5)


def test_fewer_bytes_a_weight(directory, model):
    half = lmjax.load(directory, weights="bfloat16")
    whole, less = (m("hello", source="x").logits for m in (model, half))
    assert 1e-4 < np.abs(whole - less).max() / np.abs(whole).max() < 0.2


def test_mistakes_are_one_line(model):
    for call, message in (
        (lambda: model("a", source=["b", "c"]), "1 targets and 2 sources; expected one for each"),
        (lambda: model("a", source="b" * 64), "a text of 65 tokens; expected 1 to 64"),
        (lambda: model.generate("b" * 64), "a text of 65 tokens; expected 1 to 64"),
        (lambda: model.generate("b", max_new_tokens=64), r"1 tokens \+ 64 new tokens"),
        (lambda: model(np.array([[999]]), source="b"), "ids from 999 to 999"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_the_command_line(directory, model, capsys):
    def run(*words):
        capsys.readouterr()
        return command_line.main(list(words)), *capsys.readouterr()

    generate = ("generate", "--model", str(directory), "--max_new_tokens", "6")
    code, out, errors = run(*generate, "--prompt", "wie geht", "--beams", "3", "--length_penalty", "0.6")
    assert (code, errors) == (0, "")
    assert out == model.generate("wie geht", max_new_tokens=6, beams=3, length_penalty=0.6) + "\n"
    for words, message in (
        (generate, "--prompt TEXT is needed"),
        (("verify", "--model", str(directory), "--against", str(directory)), "is an encoder-decoder"),
        (
            ("evaluate", "--model", str(directory), "--text", __file__),
            "Seq2Seq is evaluated on records; expected --data FILE",
        ),
    ):
        code, _, errors = run(*words)
        assert code == 2 and message in errors and errors.count("\n") == 1
