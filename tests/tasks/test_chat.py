"""Conversations: what counts is the answers alone, packed = alone, mistakes with file and line, and a run to its answers."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import run as command_line
from lmjax.data.packing import PackedRows
from lmjax.data.sources import JsonLines, Record
from lmjax.errors import UserError
from lmjax.experiment import DataConfig
from lmjax.interop.tokenizer_files import of_directory
from lmjax.models import transformer
from lmjax.tasks.chat import Chat
from lmjax.tokenizers import Bytes
from lmjax.train import loop
from tests import reference, tiny

TOKENIZER = Bytes(bos=True, eos=True, chat_template="plain").build(list)


def messages(*texts):
    """Of the user and the assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def record(**fields):
    return Record("n", "f:3", fields)


RECORDS = [
    record(messages=messages("1+1?", "2", "and 2+2?", "4")),
    record(messages=[{"role": "system", "content": "Be kind."}, *messages("a", "bcd", "e")]),
    record(prompt="Once ", completion="upon"),
    record(prompt=messages("x", "y", "z"), completion=[{"role": "assistant", "content": "!"}]),
]
ANSWERS = ["2\0" + "4\0", "bcd\0", "upon\0", "!\0"]


def counted(example):
    """The targets that count, EOS as 0."""
    return bytes(i if i < 256 else 0 for i in example.targets[example.weights > 0]).decode()


def test_what_counts_is_the_answers_with_the_ends_of_their_turns():
    examples = [Chat().encode(one, TOKENIZER, None, 100) for one in RECORDS]
    assert [counted(example) for (example,) in examples] == ANSWERS
    for ((tokens, targets, weights, *_),) in examples:
        assert tokens[1:].tolist() == targets[:-1].tolist() and set(weights.tolist()) <= {0.0, 1.0}


def test_the_loss_is_that_of_the_answers_whatever_shares_the_row():
    cfg = tiny.gpt2(vocab=258, context=160)
    params = transformer.init_params(cfg, jax.random.key(0))
    examples = [example for one in RECORDS for example in Chat().encode(one, TOKENIZER, cfg, 160)]
    nats = [reference.log_p(cfg, params, *example[:2]) @ example.weights for example in examples]
    batch = PackedRows(examples, length=160, source_length=160).read(np.arange(2))
    assert batch.segments_BT.max() > 1
    for loss in jax.jit(
        lambda: (Chat().training_loss(cfg, params, batch, None), Chat().held_out_loss(cfg, params, batch))
    )():
        assert float(loss.weight) == sum(map(len, ANSWERS))
        np.testing.assert_allclose(loss.total, -sum(nats), rtol=1e-5)


def test_a_long_conversation_is_cut_or_left_out_where_it_is_asked_for():
    task = Chat(too_long="cut")
    ((example),) = task.encode(RECORDS[0], TOKENIZER, None, 40)
    assert len(example.tokens) == 40 and counted(example) == "2\0"
    assert task.encode(RECORDS[0], TOKENIZER, None, 10) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "a"}, "f:3: no field 'messages', nor 'prompt' and 'completion'; it has 'text'"),
        ({"messages": "a"}, "f:3: 'messages' is 'a'; expected a list of messages"),
        ({"messages": []}, "f:3: 'messages' is .*; expected a list of messages"),
        ({"messages": ["a"]}, "f:3: message 1 of 'messages': expected an object with role and content"),
        ({"messages": [{"role": "user"}]}, "f:3: message 1 of 'messages': no field 'content'; it has 'role'"),
        ({"messages": [{"role": "user", "content": 3}]}, "f:3: message 1 of 'messages': 'content' is '3'; expected a text"),
        ({"messages": [{"role": "", "content": "a"}]}, "f:3: message 1 of 'messages': 'role' is empty; expected user"),
        ({"messages": messages("a", "")}, "f:3: message 2 of 'messages': the answer is empty"),
        ({"messages": messages("a")}, "f:3: no message of the assistant; expected an answer to learn"),
        ({"messages": messages("a", "b" * 100)}, r"f:3: 122 tokens; a row has 64 \(task.too_long=cut reads the beginning"),
        ({"prompt": "a", "completion": ""}, "f:3: 'completion' is empty; expected an answer"),
        ({"prompt": "a", "completion": messages("a")}, "f:3: 'completion' is .*; expected a text"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_with_file_and_line(fields, message):
    with pytest.raises(UserError, match=message) as caught:
        Chat().encode(record(**fields), TOKENIZER, None, 64)
    assert "\n" not in str(caught.value)


def test_a_template_that_refuses_is_told_with_the_line(tmp_path):
    strict = tiny.CHATML.replace(
        "{% endfor %}", "{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
    )
    with pytest.raises(UserError, match="^f:3: the chat template refuses: TemplateError: no system$"):
        Chat().encode(RECORDS[1], of_directory(tiny.chatml(tmp_path, strict)), None, 64)
    with pytest.raises(UserError, match="^f:3: this model's tokenizer has no chat template; expected one in"):
        Chat().encode(RECORDS[1], Bytes().build(list), None, 64)


def test_what_is_asked_stands_before_the_last_answer():
    turns = messages("a", "b", "c", "d", "e")
    given = record(prompt=turns[:1], completion=turns[1:])
    for one in (record(messages=turns), given):
        # for `predict` what is asked last
        assert Chat().asked(one) == turns
        cut = Chat().answered(one)
        assert Chat().asked(cut) == turns[:3] and Chat().answer(cut) == "d"
    assert Chat().asked(record(prompt=turns[:1])) == turns[:1]
    assert Chat().asked(RECORDS[2]) == "Once " and Chat().answered(RECORDS[2]) == RECORDS[2]


def conversations(count):
    """The answer is the letter that was asked for, three times; some users say thanks, some assistants begin."""
    letters = np.random.default_rng(0).choice(list("abcd"), size=(count, 2))
    lines = [
        {"messages": messages(f"{a}?", a * 3, f"{b}?", b * 3, "ok")[: 4 + i % 2]} for i, (a, b) in enumerate(letters)
    ]
    lines[:30] = [{"messages": messages("", "aaa")[1:]}] * 30
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_a_run_from_lines_of_json_to_answers(one_device_here, tmp_path, capsys):
    (tmp_path / "chats.jsonl").write_text(conversations(300))
    exp = tiny.experiment(
        tmp_path, task=Chat(loss_chunk=16), tokenizer=Bytes(bos=True, eos=True, chat_template="plain"),
        data=DataConfig(source=JsonLines(path=str(tmp_path / "chats.jsonl"))), batch_size=16, steps=45,
        model=tiny.llama(vocab=None, context=64, layers=1), evaluate_every=45, checkpoint_every=45,
        score_records=8, sample_every=45,
    )  # fmt: skip
    exp = replace(exp, sampling=replace(exp.sampling, max_new_tokens=8))
    loop.train(exp, tmp_path / "run")
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["eval_loss"] < 0.2 and last["exact_match"] > 0.8
    assert "b?' => 'bbb'" in (tmp_path / "run" / "samples.txt").read_text()

    run, words = str(tmp_path / "run"), ["--json", str(tmp_path / "out.json")]
    assert command_line.main(["evaluate", "--model", run, *words]) == 0
    own = json.loads((tmp_path / "out.json").read_text())
    assert own["eval_loss"] == pytest.approx(last["eval_loss"], rel=1e-6)
    # a letter three times and the end of the turn, twice in each line but those in which the assistant begins
    held_out = (tmp_path / "run" / "held_out.jsonl").read_text()
    alone = held_out.count('[{"role": "assistant"')
    assert own["tokens"] == 8 * held_out.count("\n") - 4 * alone and alone > 0
    capsys.readouterr()
    assert command_line.main(["generate", "--model", run, "--chat", "--prompt", "c?", "--max_new_tokens", "9"]) == 0
    assert capsys.readouterr().out == "ccc\n"
    (tmp_path / "bad.jsonl").write_text('{"messages": []}\n')
    assert command_line.main(["evaluate", "--model", run, "--data", str(tmp_path / "bad.jsonl")]) == 2
    assert "bad.jsonl:1: 'messages' is '[]'; expected a list of messages" in capsys.readouterr().err
