"""Answers as spans: the loss is a reference's in float64, packed = alone, windows hold what they should, mistakes are named."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import tokenizers as hf

import run as command_line
from lmjax.data.packing import PackedRows
from lmjax.data.records import Squad
from lmjax.data.sources import OtherFiles, Record
from lmjax.errors import UserError
from lmjax.experiment import DataConfig
from lmjax.models import transformer
from lmjax.tasks.span_qa import SpanQA, span_loss
from lmjax.tokenizers import Bytes, HuggingFaceTokenizer, Policy, SentencePiece
from lmjax.train import loop
from tests import tiny

TOKENIZER = Bytes(bos=True, eos=True).build(list)
TASK = SpanQA(longest_answer=4)


def record(context, answer, question="q?", start=None, **more):
    start = context.index(answer) if start is None else start
    answers = [{"text": answer, "answer_start": start}]
    return Record("n", "f: question 3", {"context": context, "question": question, "answers": answers} | more)


def model(**changes):
    return replace(tiny.bert(vocab=258, outputs=2, pooler=False, masked_head=None), **changes)


def packed(examples, length=32):
    return PackedRows(examples, length=length, source_length=length)


def test_the_loss_of_packed_windows_is_that_of_each_alone_in_float64():
    cfg, rng = model(), np.random.default_rng(0)
    records = [record("abcdef", "cd"), record("xyz", "x", question="??"), record("0123456789" * 3, "789")]
    examples = [example for one in records for example in TASK.encode(one, TOKENIZER, cfg, 32)]
    assert len(examples) == 4
    (batch,) = packed(examples, 32).in_order(3)
    # some far apart: a softmax whose largest is that of another window would have log(0)
    logits_BTC = (rng.normal(size=(3, 32, 2)) + 300 * (batch.segments_BT[..., None] == 1)).astype(np.float32)
    loss = span_loss(logits_BTC, batch)
    expected = 0.0
    for row in range(3):
        for segment in range(1, batch.segments_BT[row].max() + 1):
            here = batch.segments_BT[row] == segment
            for end in range(2):
                logits = logits_BTC[row, here, end].astype(np.float64)
                (place,) = np.flatnonzero(batch.targets_BT[row, here] & (1, 2)[end])
                expected += (np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[place]) / 2
    assert loss.weight == len(examples)
    np.testing.assert_allclose(loss.total, expected, rtol=1e-5)


def test_packed_equals_alone_with_gradients():
    cfg = model()
    params = transformer.init_params(cfg, jax.random.key(0))
    records = [record("abcdef", "cd"), record("xyz", "x", question="??"), record("0123456789", "789")]
    examples = [example for one in records for example in TASK.encode(one, TOKENIZER, cfg, 32)]

    @jax.jit
    def differentiated(batch):
        def total(params):
            loss = TASK.held_out_loss(cfg, params, batch)
            return loss.total, loss

        return jax.value_and_grad(total, has_aux=True)(params)

    def added(examples):
        """(loss, its gradient) over all rows."""
        parts = [differentiated(batch) for batch in packed(examples).in_order(1)]
        return jax.tree.map(lambda *x: sum(x), *((loss, grads) for (_, loss), grads in parts))

    loss, grads = added(examples)
    losses, alone = jax.tree.map(lambda *x: sum(x), *(added([example]) for example in examples))
    assert loss.weight == losses.weight == 3 and loss.correct == losses.correct
    np.testing.assert_allclose(loss.total, losses.total, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), grads, alone)


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@pytest.mark.parametrize("stride", [None, 1, 3, 100])
def test_windows_cover_the_context_and_point_at_the_answer(kind, stride):
    """Every token is in some window; where a window has the whole answer, its marked tokens decode to it."""
    text = "Zürich und 東京 liegen weit auseinander, sagt Ünal 😀 heute."
    pieces = SentencePiece(vocab_size=320).build(lambda: [tiny.text(2000) + text])
    tokenizer = {"bytes": TOKENIZER, "pieces": pieces}[kind]
    task = SpanQA(longest_answer=4, stride=stride)
    one = record(text, "東京", question="Wo?")
    asked, examples = task.asked(one, tokenizer, 24), task.encode(one, tokenizer, model(), 24)
    assert len(examples) == len(asked.starts) > 1
    seen = np.zeros(len(asked.spans_S2), bool)
    marked = 0
    for window, example in enumerate(examples):
        assert len(example.tokens) <= 24 and example.weights.sum() == 1
        here = asked.tokens(window)
        seen[here] = True
        part = example.tokens[asked.before : asked.before + here.stop - here.start]
        assert part.tolist() == tokenizer.encode(text)[here].tolist()
        (first,), (last,) = (np.flatnonzero(example.targets & flag) for flag in (1, 2))
        holds = here.start <= np.flatnonzero(asked.spans_S2[:, 1] > text.index("東"))[0]
        holds &= here.stop > np.flatnonzero(asked.spans_S2[:, 0] <= text.index("京"))[-1]
        assert (first > 0) == holds
        if holds:
            marked += 1
            assert tokenizer.decode(example.tokens[first : last + 1]).strip() == "東京"
        else:
            assert (first, last) == (0, 0)
    assert seen.all() and marked


def test_a_short_context_is_one_window():
    (example,) = TASK.encode(record("abc", "b"), TOKENIZER, model(), 32)
    assert example.tokens.tolist() == [256, *b"q?", 257, *b"abc", 257]
    assert example.types.tolist() == [0] * 4 + [1] * 4
    assert example.targets.tolist() == [0, 0, 0, 0, 0, 3, 0, 0]
    assert example.weights.tolist() == [0, 0, 0, 0, 0, 1, 0, 0]


def test_tokens_that_the_question_has_too_are_marked():
    (example,) = replace(TASK, mark_shared=True).encode(record("a?bq", "b"), TOKENIZER, model(token_types=3), 32)
    assert example.types.tolist() == [0] * 4 + [1, 2, 1, 2, 1]
    with pytest.raises(ValueError, match="task.mark_shared needs model.token_types to be 3 or more; it is 2"):
        replace(TASK, mark_shared=True).check(model())


def test_no_answer_points_at_the_first_token():
    one = record("abc", "b")
    one.fields["answers"] = []
    (example,) = replace(TASK, null_threshold=0.0).encode(one, TOKENIZER, model(), 32)
    assert example.targets[0] == 3 and example.weights[0] == 1


@pytest.mark.parametrize(
    ("task", "one", "message"),
    [
        (TASK, record("abc", "b", start=2), "f: question 3: the answer 'b' is not in its context at answer_start 2"),
        (TASK, record("abc", "a", start=-3), "the answer 'a' is not in its context at answer_start -3"),
        (TASK, record("abc", "a", start="0"), "the answer 'a' is not in its context at answer_start 0"),
        (TASK, record("abc", "b", answers=[]), "f: question 3: no answer; expected one, or task.null_threshold"),
        (TASK, record("abc", "b", answers=7), """'answers' is '7'; expected a text, a list of texts or of {"text", "answer_start"}"""),
        (TASK, record("abc", "b", answers={"text": ["b", "c"], "answer_start": [1]}), "of two such lists, equally long"),
        (TASK, record("abc", "b", answers="b"), "the answer 'b' has no answer_start"),
        (TASK, record("abc", "b", answers=[{"text": "b"}]), "the answer 'b' has no answer_start"),
        (TASK, record("abc", "b", answers=[{"text": "", "answer_start": 0}]), "an answer is empty; expected a text"),
        (SpanQA(answers="spans", longest_answer=4), record("abc", "b"), "no field 'spans'; it has 'context', 'question', 'answers'"),
        (TASK, record("abc", "b", question=" "), "'question' is empty"),
        (TASK, record(" ", " "), "'context' is empty"),
        (TASK, record("abc", "b", question="q" * 26), "the question has 29 tokens, control tokens included, and leaves 3"),
    ],
)  # fmt: skip
def test_mistakes_are_named(task, one, message):
    with pytest.raises(UserError) as told:
        task.encode(one, TOKENIZER, model(), 32)
    assert message in str(told.value) and "\n" not in str(told.value)


def test_answers_as_two_lists():
    one = record("abc", "b", answers={"text": ["b", "bc"], "answer_start": [1, 1]})
    assert [answer.text for answer in TASK.answers_of(one)] == ["b", "bc"]


def test_a_context_of_which_the_tokenizer_keeps_nothing():
    bare = hf.Tokenizer(hf.models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    bare.normalizer = hf.normalizers.BertNormalizer()
    with pytest.raises(UserError, match="f: question 3: the tokenizer has no token for 'context'"):
        TASK.asked(record("\u200b", ""), HuggingFaceTokenizer(bare.to_str(), Policy()), 32)


def test_models_that_cannot_do_it():
    with pytest.raises(ValueError, match="expected model.causal to be False"):
        TASK.check(tiny.llama())
    with pytest.raises(ValueError, match="model.pooler is a layer over the first one"):
        TASK.check(tiny.bert())
    with pytest.raises(ValueError, match="stride is 0"):
        SpanQA(stride=0)


def squad(count, seed):
    """The answer is the only word with a capital and a digit."""
    rng, paragraphs = np.random.default_rng(seed), []
    for i in range(count):
        number = f"{rng.choice(list('XYZ'))}{rng.integers(10)}"
        context = " ".join(rng.permutation([*rng.choice(["ab", "bc", "a"], size=8), number]))
        answer = {"text": number, "answer_start": context.index(number)}
        paragraphs.append({"context": context, "qas": [{"id": i, "question": "n", "answers": [answer]}]})
    return json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]})


def test_a_run_from_squads_files_to_figures(one_device_here, tmp_path, capsys):
    for name, count, seed in (("train", 600, 0), ("dev", 60, 1), ("test", 60, 2)):
        (tmp_path / f"{name}.json").write_text(squad(count, seed))
    source = Squad(path=str(tmp_path / "train.json"), held_out=OtherFiles(path=str(tmp_path / "dev.json")))
    exp = tiny.experiment(
        tmp_path, task=SpanQA(longest_answer=4), data=DataConfig(source=source), steps=60, batch_size=16,
        tokenizer=Bytes(bos=True, eos=True), schedule=replace(tiny.experiment(tmp_path).schedule, peak=2e-2),
        model=tiny.bert(
            vocab=None, context=48, pooler=False, masked_head=None, init_std=0.05, norm_first=True, layers=2,
        ),
        microbatches=2, evaluate_every=30, checkpoint_every=30, sample_every=60, score_records=40,
    )  # fmt: skip
    loop.train(exp, tmp_path / "run")
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["exact_match"] > 0.9 and last["f1"] >= last["exact_match"] and last["accuracy"] > 0.9
    assert "; expected '" in (tmp_path / "run" / "samples.txt").read_text()

    (tmp_path / "run").rename(tmp_path / "moved")
    words = ["evaluate", "--model", str(tmp_path / "moved"), "--json", str(tmp_path / "out.json")]
    assert command_line.main([*words]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["questions"] == 60
    assert command_line.main([*words, "--data", str(tmp_path / "test.json")]) == 0
    by_squad = json.loads((tmp_path / "out.json").read_text())
    assert by_squad["exact_match"] > 0.9
    lines = [json.dumps(record.fields) for record in Squad(path=str(tmp_path / "test.json")).records()]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    assert command_line.main([*words, "--data", str(tmp_path / "test.jsonl")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["exact_match"] == by_squad["exact_match"]
    (tmp_path / "bad.json").write_text(squad(1, 0).replace('"answer_start": ', '"answer_start": 7'))
    capsys.readouterr()
    assert command_line.main([*words, "--data", str(tmp_path / "bad.json")]) == 2
    told = capsys.readouterr().err
    assert "bad.json: question " in told and "is not in its context at answer_start 7" in told and told.count("\n") == 1
