"""Preferences: the loss of the paper in NumPy, packed = alone, mistakes with file and line, and runs beside their base."""

import json
import shutil
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

import run as command_line
from lmjax.data.packing import PackedRows
from lmjax.data.sources import JsonLines, Record
from lmjax.errors import UserError
from lmjax.evaluate.preferences import REFERENCE, Judge
from lmjax.experiment import DataConfig
from lmjax.interop.write import export
from lmjax.models import transformer
from lmjax.models.lora import LoRA
from lmjax.sharding import Mesh, build_mesh, place_batch
from lmjax.tasks.chat import Chat
from lmjax.tasks.preferences import CHOSEN, Preferences, apart, with_reference
from lmjax.tokenizers import Bytes
from lmjax.train import loop
from tests import reference, tiny
from tests.one_device import on_one_device
from tests.train.test_resume import assert_same_run, losses, run

TOKENIZER = Bytes(bos=True, eos=True, chat_template="plain").build(list)
CFG = tiny.gpt2(vocab=258, context=128)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def record(**fields):
    return Record("n", "f:3", fields)


RECORDS = [
    record(prompt="1+1=", chosen="2", rejected="three"),
    record(prompt="Say it.", chosen=[assistant("yes")], rejected=[assistant("no!")]),
    record(prompt=[user("a"), assistant("b"), user("c")], chosen=[assistant("d")], rejected=[assistant("efg")]),
    record(chosen=[user("x"), assistant("y")], rejected=[user("x"), assistant("zz")]),
]
ANSWERS = [("2\0", "three\0"), ("yes\0", "no!\0"), ("d\0", "efg\0"), ("y\0", "zz\0")]


def encoded(task=Preferences()):
    return [task.encode(one, TOKENIZER, CFG, CFG.context)[0] for one in RECORDS]


def sides(example):
    """(tokens, targets, weights) of the chosen and of the rejected answer with their prompt."""
    chosen = example.types == CHOSEN
    return [[field[where] for field in example[:3]] for where in (chosen, ~chosen)]


def test_what_counts_is_the_answers_after_the_same_prompt():
    for example, expected in zip(encoded(), ANSWERS, strict=True):
        for (tokens, targets, weights), answer in zip(sides(example), expected, strict=True):
            assert bytes(i if i < 256 else 0 for i in targets[weights > 0]).decode() == answer
            assert tokens[1:].tolist() == targets[:-1].tolist()
        (one, _, counts), (other, *_) = sides(example)
        given = int(np.argmax(counts)) + 1
        assert one[:given].tolist() == other[:given].tolist()


def paper(policy, base, examples, beta, smoothing):
    """Equation 7 in float64, of each pair: (loss, margin); its answers read alone."""
    found = []
    for example in examples:
        ratios = []
        for tokens, targets, weights in sides(example):
            log_p, base_log_p = (reference.log_p(CFG, params, tokens, targets) @ weights for params in (policy, base))
            ratios.append(log_p - base_log_p)
        margin = beta * (ratios[0] - ratios[1])
        sigmoid = 1 / (1 + np.exp(-margin))
        found.append((-(1 - smoothing) * np.log(sigmoid) - smoothing * np.log(1 - sigmoid), margin))
    return np.array(found).T


@pytest.mark.parametrize(
    "task", [Preferences(), Preferences(beta=0.7, label_smoothing=0.2, loss_chunk=32)], ids=["dpo", "smoothed, chunks"]
)
def test_the_loss_is_the_papers_whatever_shares_the_row(task):
    policy, base = (transformer.init_params(CFG, jax.random.key(seed)) for seed in (0, 1))
    examples = encoded(task)
    rows = PackedRows(examples, length=CFG.context, source_length=CFG.context)
    exp = tiny.experiment("unused", model=CFG, task=task, init_from="base", batch_size=2, microbatches=1)
    batch = apart(with_reference(rows, Judge(exp)(base, rows)).read(np.arange(3)))
    assert batch.segments_BT.max() >= 4 and batch.segments_BT[2].max() == 0
    nats, margins = paper(policy, base, examples, task.beta, task.label_smoothing)
    assert np.abs(margins).min() > 0.1
    loss = jax.jit(partial(task.held_out_loss, CFG))(policy, batch)
    assert float(loss.weight) == len(RECORDS) and int(loss.correct) == (margins > 0).sum()
    np.testing.assert_allclose([loss.total, loss.figures["margin"]], [nats.sum(), margins.sum()], rtol=1e-4)
    rewards = loss.figures["chosen_reward"] - loss.figures["rejected_reward"]
    np.testing.assert_allclose(rewards, margins.sum(), rtol=1e-4)

    def trained(task):
        of = jax.value_and_grad(lambda params: task.training_loss(CFG, params, batch, None).total)
        return jax.jit(of)(policy)

    total, whole = trained(replace(task, loss_chunk=None))
    np.testing.assert_allclose(total, nats.sum(), rtol=1e-4)
    assert all(np.isfinite(one).all() for one in jax.tree.leaves(whole))
    if task.loss_chunk == 32:
        for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(trained(task)[1]), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())


def test_pairs_are_the_same_on_any_mesh():
    cfg, task = tiny.llama(vocab=258, context=128, layers=1), Preferences(loss_chunk=32)
    policy, base = (transformer.init_params(cfg, jax.random.key(seed)) for seed in (0, 1))
    rows = PackedRows(encoded(task), length=128, source_length=128)
    exp = tiny.experiment("unused", model=cfg, task=task, init_from="base", batch_size=4, microbatches=1)
    found = Judge(exp)(base, rows)
    batch = apart(with_reference(rows, found).read(np.arange(4)))
    loss = jax.jit(partial(task.held_out_loss, cfg))
    mesh = build_mesh(Mesh(data=2, sequence=2, tensor=2))
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(Judge(exp)(base, rows), found, atol=1e-4)
        split = loss(policy, place_batch(batch, mesh))
    np.testing.assert_allclose(split.total, loss(policy, batch).total, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "f:3: no field 'rejected'; it has 'prompt', 'chosen'"),
        ({"chosen": "a", "rejected": "b"}, "f:3: no field 'prompt'; it has 'chosen', 'rejected'"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "f:3: 'rejected' is empty; expected an answer"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "f:3: 'chosen' and 'rejected' are the same; expected two"),
        ({"prompt": "a", "chosen": "b" * 90, "rejected": "c" * 50},
         r"f:3: 144 tokens in both answers with their prompts; a row has 128 \(task.too_long=skip leaves"),
        ({"prompt": "a", "chosen": [assistant("b")], "rejected": "c"}, "f:3: 'rejected' is 'c'; expected a list of"),
        ({"prompt": "a", "chosen": [assistant("b")], "rejected": [user("c")]},
         "f:3: 'rejected': expected one answer of the assistant after what both share"),
        ({"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("b")]},
         "f:3: 'chosen' and 'rejected' part before their last message"),
        ({"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("")]},
         "f:3: message 2 of 'rejected': the answer is empty"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_with_file_and_line(fields, message):
    with pytest.raises(UserError, match=message) as caught:
        Preferences().encode(record(**fields), TOKENIZER, CFG, 128)
    assert "\n" not in str(caught.value)


def test_settings_that_cannot_be():
    assert (
        Preferences(too_long="skip").encode(record(prompt="a", chosen="b" * 99, rejected="c"), TOKENIZER, CFG, 64) == []
    )
    for fields in ({"beta": 0.0}, {"label_smoothing": 0.5}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            Preferences(**fields)
    with pytest.raises(ValueError, match="task Preferences needs init_from, the model that its answers are compared"):
        tiny.experiment("unused", task=Preferences())
    for task in (Preferences(), Chat()):
        with pytest.raises(ValueError, match="reads one text; expected model.encoder_layers to be 0"):
            task.check(tiny.t5())


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a model's weights, pairs in which the upper case is preferred, and a run of them, which skips some
    pairs, held-out ones first of all."""
    place = tmp_path_factory.mktemp("base")
    cfg = experiment(place).model
    export(cfg, transformer.init_params(cfg, jax.random.key(1)), None, place / "base")
    words = np.random.default_rng(0).choice(["ab", "cd", "ef"], size=200)
    lines = [{"prompt": "", "chosen": "a" * 99, "rejected": f"{i}"} for i in range(40)]
    lines += [{"prompt": f"{i % 10}", "chosen": w.upper(), "rejected": w} for i, w in enumerate(words)]
    (place / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with on_one_device():
        loop.train(experiment(place), place / "run")
    return place


def experiment(place, **changes):
    return tiny.experiment(
        "", task=Preferences(beta=0.5, too_long="skip"), init_from=str(place / "base"), tokenizer=Bytes(eos=True),
        data=DataConfig(source=JsonLines(path=str(place / "pairs.jsonl"))), steps=8, evaluate_every=4,
        checkpoint_every=4, sample_every=8, score_records=8, model=tiny.gpt2(vocab=258, context=16, width=16), **changes,
    )  # fmt: skip


def metrics(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_run_ends_the_same_when_stopped_and_prefers_what_was_chosen(base, one_device_here, tmp_path, monkeypatch):
    assert_same_run(base / "run", run(experiment(base), tmp_path / "stopped", [5], monkeypatch))
    # before the first step the model is its own reference
    np.testing.assert_allclose(losses(base / "run")[0][1], np.log(2), rtol=1e-5)
    last = metrics(base / "run")[-1]
    assert last["eval_loss"] < np.log(2) and last["accuracy"] > 0.9 and last["margin"] > 0
    assert last["margin"] == pytest.approx(last["chosen_reward"] - last["rejected_reward"], rel=1e-4)
    assert last["chosen_likelier"] > 0.9
    assert "of the rejected" in (base / "run" / "samples.txt").read_text()


def test_an_adapter_is_compared_with_its_base(base, one_device_here, tmp_path):
    loop.train(experiment(base, adapter=LoRA(rank=2, weights=("blocks/*/kernel",))), tmp_path / "run")
    assert (tmp_path / "run" / REFERENCE).read_text() == (base / "run" / REFERENCE).read_text()
    assert metrics(tmp_path / "run")[-1]["eval_loss"] < np.log(2)


def test_evaluated_with_and_without_the_base(base, one_device_here, tmp_path, capsys):
    last, out, known = metrics(base / "run")[-1], tmp_path / "out.json", base / "run" / REFERENCE
    words = ["evaluate", "--model", str(base / "run"), "--json", str(out)]
    new = ["--data", str(tmp_path / "new.jsonl")]
    held_out = (base / "run" / "held_out.jsonl").read_text()
    # other examples, so that the base is asked
    (tmp_path / "new.jsonl").write_text(2 * held_out)
    assert command_line.main([*words, *new]) == 0
    twice = json.loads(out.read_text())
    assert twice["tokens"] == 2 * held_out.count("\n")
    assert twice["margin"] == pytest.approx(last["margin"], rel=1e-4)

    (base / "base").rename(base / "away")
    assert command_line.main([*words]) == 0
    own = json.loads(out.read_text())
    assert own["eval_loss"] == pytest.approx(last["eval_loss"], rel=1e-6) and own["accuracy"] == last["accuracy"]
    capsys.readouterr()
    assert command_line.main([*words, *new]) == 2
    err = capsys.readouterr().err
    (base / "away").rename(base / "base")
    assert "run compares its answers with those of" in err and err.count("\n") == 1

    # nor does a run go on with others
    assert len(json.loads(known.read_text())["log_p"]) == 2
    shutil.copytree(base / "run", tmp_path / "run")
    source = JsonLines(path=str(tmp_path / "new.jsonl"))
    with pytest.raises(UserError, match="reference.json is of other examples, and the model before the first step"):
        loop.train(
            replace(experiment(base), steps=9, data=DataConfig(source=source)), tmp_path / "run", accept_changes=True
        )
