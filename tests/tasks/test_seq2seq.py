"""A text for a text: packed = alone, what counts is the target, the search's text and its probability, a run."""

import json
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

import run as command_line
from lmjax.data.packing import PackedRows, next_tokens
from lmjax.data.records import Parallel
from lmjax.data.sources import OtherFiles, Record
from lmjax.errors import UserError
from lmjax.evaluate.texts import Writer
from lmjax.experiment import DataConfig
from lmjax.interop.write import export
from lmjax.language_model import LanguageModel
from lmjax.loaded import load_model
from lmjax.models import transformer
from lmjax.optim import Cosine, Muon
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.text_to_text import TextToText
from lmjax.tokenizers import Bytes, HuggingFace
from lmjax.train import loop
from lmjax.train.prepare import prepare
from tests import tiny

TOKENIZER = Bytes(bos=True, eos=True).build(list)
BOS, EOS = 256, 257
MODELS = {"two stacks": tiny.t5(vocab=258, context=48), "a decoder": tiny.llama(vocab=258, context=48)}
PAIRS = [("ein Haus", "a house"), ("ja", "yes"), ("der Hund", "the dog")]


def record(source, target, **more):
    return Record("n", "f:3", {"source": source, "target": target} | more)


RECORDS = [record(*pair) for pair in PAIRS]


def rows(cfg, task, records, length=48):
    examples = [example for one in records for example in task.encode(one, TOKENIZER, cfg, length)]
    return PackedRows(examples, length=length, source_length=length)


def parameters(cfg):
    return transformer.init_params(cfg, jax.random.key(0))


@partial(jax.jit, static_argnums=(0, 1))
def held_out(task, cfg, params, batch):
    return task.held_out_loss(cfg, params, batch)


@pytest.mark.parametrize("name", MODELS)
def test_packed_equals_alone(name):
    cfg, task = MODELS[name], Seq2Seq()
    run = partial(held_out, task, cfg, parameters(cfg))
    length = 96 if cfg.encoder_layers == 0 else 48
    whole = rows(cfg, task, RECORDS, length)
    together = [run(batch) for batch in whole.in_order(1)]
    apart = [run(batch) for one in RECORDS for batch in rows(cfg, task, [one], length).in_order(1)]
    assert len(whole.rows) < 3
    # the bytes of the targets, and EOS behind each
    assert sum(loss.weight for loss in together) == sum(len(target) + 1 for _, target in PAIRS)
    np.testing.assert_allclose(
        sum(loss.total for loss in together), sum(loss.total for loss in apart), rtol=1e-5
    )  # fmt: skip


def test_the_loss_is_that_of_the_target_given_its_source():
    """By the models that users call, which know nothing of rows."""
    cfg = MODELS["two stacks"]
    params = parameters(cfg)
    model = TextToText(cfg, params, TOKENIZER, "here", BOS)
    wanted = -sum(model.score(target, source=source).log_probability for source, target in PAIRS)
    (batch,) = rows(cfg, Seq2Seq(), RECORDS).in_order(1)
    np.testing.assert_allclose(held_out(Seq2Seq(), cfg, params, batch).total, wanted, rtol=1e-5)


def test_of_a_decoder_the_target_alone_counts():
    cfg = MODELS["a decoder"]
    params, task = parameters(cfg), Seq2Seq(separator="=")
    (batch,) = rows(cfg, task, [record("ab", "cd")]).in_order(1)
    assert batch.tokens_BT[0, :6].tolist() == [BOS, *b"ab=cd"]
    assert batch.targets_BT[0, :6].tolist() == [*b"ab=cd", EOS]
    assert batch.weights_BT[0, :7].tolist() == [0, 0, 0, 1, 1, 1, 0]
    model = LanguageModel(cfg, params, TOKENIZER, "here")
    logits = np.asarray(model(np.array([[BOS, *b"ab=cd", EOS]])).logits[0], np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = -(log_p[3, ord("c")] + log_p[4, ord("d")] + log_p[5, EOS])
    np.testing.assert_allclose(held_out(task, cfg, params, batch).total, wanted, rtol=1e-5)


def test_label_smoothing_is_of_training_alone():
    cfg = MODELS["two stacks"]
    params = parameters(cfg)
    (batch,) = rows(cfg, Seq2Seq(), RECORDS).in_order(1)
    plain, smooth = Seq2Seq(), Seq2Seq(label_smoothing=0.1)
    totals = [held_out(task, cfg, params, batch).total for task in (plain, smooth)]
    assert totals[0] == totals[1]
    log_p_BT = jax.jit(partial(smooth.log_probabilities, cfg))(params, batch)
    np.testing.assert_allclose(totals[0], -(log_p_BT * batch.weights_BT).sum(), rtol=1e-5)
    trained = jax.jit(lambda: smooth.training_loss(cfg, params, batch, None).total)()
    assert abs(trained - totals[0]) > 1e-2


# a decoder's beams: below
@pytest.mark.parametrize(("name", "beams"), [("two stacks", 1), ("two stacks", 3), ("a decoder", 1)])
def test_what_is_written_is_what_the_model_writes(name, beams):
    cfg = replace(MODELS[name], init_std=0.5)
    params = parameters(cfg)
    # more records than one batch has, of other lengths, in their order
    records = [record("x" * (1 + i % 7) + str(i), "t") for i in range(37)]
    exp = tiny.experiment("", model=cfg, task=Seq2Seq(beams=beams), data=DataConfig(length=8), batch_size=4)
    predictions = Writer(exp, TOKENIZER)(params, records)
    for one, prediction in list(zip(records, predictions, strict=True))[::18]:
        settings = {"max_new_tokens": 8, "beams": beams}
        source = one.fields["source"]
        if cfg.encoder_layers:
            model = TextToText(cfg, params, TOKENIZER, "here", BOS)
            assert prediction["text"] == model.generate(source, **settings)
        else:
            whole = LanguageModel(cfg, params, TOKENIZER, "here").generate(source + " => ", **settings)
            assert source + " => " + prediction["text"] == whole


@pytest.mark.parametrize("beams", [1, 2])
def test_each_text_has_the_room_that_its_own_prompt_leaves(beams):
    cfg = replace(MODELS["a decoder"], init_std=0.5, layers=1)
    params, records = parameters(cfg), [record("x" * n, "t") for n in (2, 40, 9)]
    exp = tiny.experiment("", model=cfg, task=Seq2Seq(beams=beams), batch_size=2)
    # nothing stops
    tokenizer = Bytes(eos=True).build(list)
    tokenizer.policy = replace(tokenizer.policy, other_stops=(300,))
    write = Writer(exp, tokenizer)
    together = write(params, records)
    assert [one["text"] for one in together] == [write(params, [one])[0]["text"] for one in records]
    assert min(len(one["text"]) for one in together) <= 48 - 44 < max(len(one["text"]) for one in together)
    with pytest.raises(UserError, match="f:3: a source of 48 tokens in a model.context of 48; no text follows"):
        write(params, [*records, record("x" * 44, "t")])


@pytest.mark.parametrize("name", MODELS)
def test_a_text_that_fills_its_room_has_the_probability_of_its_own_tokens(name, monkeypatch):
    cfg = MODELS[name]
    params, task = parameters(cfg), Seq2Seq(loss_chunk=8)
    exp = tiny.experiment("", model=cfg, task=task, data=DataConfig(length=8), batch_size=2)
    full, ended = np.arange(97, 105), np.arange(97, 104)
    monkeypatch.setattr("lmjax.evaluate.texts.write_all", lambda *arguments, **settings: [full, ended])
    found = Writer(exp, TOKENIZER)(params, [record("ab", "")] * 2)
    for new, prediction in zip((full, [*ended, EOS]), found, strict=True):
        before, source = task.prompt(record("ab", ""), TOKENIZER, cfg)
        whole = np.array([*before, *new])
        example = next_tokens(whole, np.arange(len(whole)) >= len(before), source)
        (batch,) = PackedRows([example], length=48, source_length=48).in_order(1)
        wanted = -held_out(Seq2Seq(), cfg, params, batch).total
        assert prediction["log_probability"] == pytest.approx(float(wanted), rel=1e-5)


def test_the_probability_of_a_text_is_its_loss(monkeypatch):
    cfg = MODELS["two stacks"]
    params, task = parameters(cfg), Seq2Seq()
    exp = tiny.experiment("", model=cfg, task=task, data=DataConfig(length=16), batch_size=2)
    targets = [np.array([*target.encode()]) for _, target in PAIRS]
    monkeypatch.setattr("lmjax.evaluate.texts.write_all", lambda *arguments, **settings: targets)
    predictions = Writer(exp, TOKENIZER)(params, RECORDS)
    assert [prediction["text"] for prediction in predictions] == [target for _, target in PAIRS]
    for one, prediction in zip(RECORDS, predictions, strict=True):
        (batch,) = rows(cfg, task, [one]).in_order(1)
        wanted = -float(held_out(task, cfg, params, batch).total)
        assert prediction["log_probability"] == pytest.approx(wanted, rel=1e-5)


def test_references():
    task = Seq2Seq(source="{question} {context}", target="answers")
    many = record("", "", answers=[{"text": "a", "answer_start": 3}, {"text": "b"}])
    assert task.references(many) == ["a", "b"]
    assert task.references(record("", "", answers=["c"])) == ["c"]
    assert task.references(record("", "", answers="d")) == ["d"]
    assert task.texts(record("", "", question="q?", context="c.", answers="d")) == ["q? c.", "d"]
    lists = {"text": ["Paris", "the city"], "answer_start": [3, 0]}
    assert task.references(record("", "", answers=lists)) == ["Paris", "the city"]
    for wrong, message in (
        ([], "f:3: 'answers' has no text; expected one"),
        (5, "f:3: 'answers' is '5'; expected a text, a list of"),
        ([5], "f:3: 'answers' is '\\[5\\]'; expected a text"),
        ({"text": "a"}, "expected a text, a list of"),
        ({"text": ["a", "b"], "answer_start": [0]}, "of two such lists, equally long"),
        ({"text": ["a"], "answer_start": 0}, "of two such lists, equally long"),
        (["\ud800"], "f:3: an answer in 'answers': half a surrogate pair at character 0"),
    ):
        with pytest.raises(UserError, match=message):
            task.references(record("", "", answers=wrong))


def test_mistakes_are_named():
    task, cfg = Seq2Seq(), MODELS["two stacks"]
    with pytest.raises(UserError, match=r"f:3: the target has 41 tokens; a row has 8 \(task.too_long=drop"):
        task.encode(record("a", "b" * 40), TOKENIZER, cfg, 8)
    with pytest.raises(UserError, match="f:3: the source has 12 tokens; a row has 9"):
        task.encode(record("a" * 10, "b"), TOKENIZER, cfg, 8, 9)
    assert replace(task, too_long="drop").encode(record("a" * 10, "b"), TOKENIZER, cfg, 8, 9) == []
    # longer than the context too
    assert replace(task, too_long="drop").encode(record("a" * 50, "b"), TOKENIZER, cfg, 48) == []
    with pytest.raises(UserError, match="f:3: the source has 52 tokens; a row has 48"):
        task.encode(record("a" * 50, "b"), TOKENIZER, cfg, 48)
    with pytest.raises(UserError, match="f:3: no field 'text'; it has 'source', 'target'"):
        replace(task, source="{text}").encode(record("a", "b"), TOKENIZER, cfg, 8)
    with pytest.raises(UserError, match="the tokenizer has no EOS"):
        task.encode(record("a", "b"), Bytes().build(list), cfg, 8)
    with pytest.raises(
        ValueError, match="Seq2Seq predicts a token from those before it; expected model.causal to be True"
    ):
        task.check(tiny.bert())


def test_training_that_starts_from_a_model_begins_texts_as_it_does(tmp_path):
    cfg = tiny.t5(vocab=258, context=32)
    export(cfg, parameters(cfg), Bytes(eos=True).build(list), tmp_path / "t5", start=7)
    source = Parallel(path=translations(tmp_path, 9, 0), held_out=OtherFiles(path=translations(tmp_path, 9, 1)))
    exp = tiny.experiment(
        "", task=Seq2Seq(), data=DataConfig(source=source), model=replace(cfg, vocab=None),
        tokenizer=HuggingFace(path=str(tmp_path / "t5"), eos="</s>"), init_from=str(tmp_path / "t5"),
    )  # fmt: skip
    prepared = prepare(exp, None)
    assert prepared.experiment.task.start == 7
    assert prepared.batches[1].tokens_BT[0, 0] == 7
    loaded = load_model(tmp_path / "t5")
    assert loaded.experiment.task.start == 7


def translations(path, count, seed):
    rng = np.random.default_rng(seed)
    lines = ["".join(rng.choice(list("efgh"), rng.integers(2, 5))) for _ in range(count)]
    (path / f"{seed}.a").write_text("".join(f"{line}\n" for line in lines))
    (path / f"{seed}.b").write_text("".join(f"{line.translate(str.maketrans('efgh', 'wxyz'))}\n" for line in lines))
    return str(path / f"{seed}.a"), str(path / f"{seed}.b")


def test_a_run_from_parallel_files_to_figures(one_device_here, tmp_path, capsys):
    train, held_out = translations(tmp_path, 400, 0), translations(tmp_path, 40, 1)
    source = Parallel(path=train, held_out=OtherFiles(path=held_out))
    exp = tiny.experiment(
        tmp_path, task=Seq2Seq(figures="answers"), data=DataConfig(source=source, length=16, source_length=24),
        model=tiny.t5(vocab=None, context=32, layers=1, encoder_layers=1, init_std=0.1), tokenizer=Bytes(eos=True),
        optimizer=Muon(), schedule=Cosine(peak=0.05, warmup=0.1), batch_size=32, microbatches=2, steps=60,
        evaluate_every=30, checkpoint_every=30, sample_every=60, score_records=40,
    )  # fmt: skip
    loop.train(exp, tmp_path / "run")
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    # of 2 to 4 letters out of 4; a guess is right in 1 of 47
    assert last["exact_match"] > 0.25
    assert "right is" in (tmp_path / "run" / "samples.txt").read_text()
    words = ["evaluate", "--model", str(tmp_path / "run"), "--json", str(tmp_path / "out.json")]
    assert command_line.main([*words]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["questions"] == 40
    assert command_line.main([*words, "--beams", "3", "--length_penalty", "0.6"]) == 0
    searched = json.loads((tmp_path / "out.json").read_text())
    assert searched["questions"] == 40 and 0 <= searched["exact_match"] <= 1
    capsys.readouterr()
    for more, message in (
        (["--beams", "0"], "--beams: beams is 0; expected a positive number"),
        (["--length_penalty", "0.6"], "--length_penalty: length_penalty is 0.6, and beams 1, no search"),
    ):
        assert command_line.main([*words, *more]) == 2
        assert capsys.readouterr().err == f"error: {message}\n"
