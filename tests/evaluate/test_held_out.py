"""Held-out likelihood is exact, whatever the batch size, the devices and the way in."""

import json
import math
from dataclasses import replace

import jax
import numpy as np
import pytest

import run as command_line
from lmjax import commands
from lmjax.data.store import stream_of
from lmjax.data.windows import Windows
from lmjax.errors import UserError
from lmjax.evaluate import compressors
from lmjax.evaluate.held_out import HeldOut, compile_loss, held_out
from lmjax.evaluating import with_context
from lmjax.experiment import DataConfig
from lmjax.models import transformer
from lmjax.sharding import Mesh, build_mesh
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tokenizers import Bytes
from lmjax.train import loop
from tests import reference, tiny

CFG = tiny.gpt2(vocab=258, context=16)
TEXTS = [tiny.text(150), tiny.text(77, seed=1), "é漢😀"]


def score(rows, devices=1, *, apart=False, bos=False, cfg=CFG, texts=TEXTS):
    exp = tiny.experiment(
        "unused", model=cfg, batch_size=rows, microbatches=1, data=DataConfig(documents="apart" if apart else "joined")
    )
    params = transformer.init_params(cfg, jax.random.key(0))
    mesh = build_mesh(Mesh(), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        tokenizer = Bytes(bos=bos).build(list)
        read = Windows(stream_of(texts, tokenizer), exp.length, exp.apart)
        return held_out(exp, compile_loss(exp), params, read, mesh, tokenizer)


@pytest.mark.parametrize("apart", [False, True])
def test_any_batch_size_and_any_number_of_devices_give_the_same(apart):
    one, *others = (score(rows, devices, apart=apart) for rows, devices in [(1, 1), (3, 1), (64, 1), (8, 8)])
    for other in others:
        assert other.nats == pytest.approx(one.nats, rel=1e-6)
        assert other.tokens == one.tokens
    assert score(3, apart=apart).nats == others[0].nats  # bitwise


@pytest.mark.parametrize("bos", [False, True])
def test_equals_a_loop_over_every_token_in_float64(bos):
    params = transformer.init_params(CFG, jax.random.key(0))
    ids = np.concatenate([[256] * bos + list(text.encode()) for text in TEXTS]).astype(int)
    nats, tokens = 0.0, 0
    for start in range(0, len(ids) - 1, 16):
        window = ids[start : start + 17]
        logits = reference.logits(CFG, params, window[:-1], np.arange(len(window) - 1), np.ones(len(window) - 1))
        for row, target in zip(logits, window[1:], strict=True):
            if target != 256:
                nats -= np.log(reference.softmax(row)[target])
                tokens += 1
    ours = score(4, bos=bos)
    assert ours.tokens == tokens == sum(len(t.encode()) for t in TEXTS) - (not bos)
    assert ours.nats == pytest.approx(nats, rel=1e-6)


def test_definitions():
    result = HeldOut(nats=100.0, tokens=50, text_bytes=80, protocol="")
    assert result.eval_loss == 2.0
    assert result.perplexity == pytest.approx(math.e**2)
    assert result.bits_per_byte == pytest.approx(100 / math.log(2) / 80)


def test_bits_per_byte_count_utf8_bytes_of_the_text_alone():
    assert score(4, bos=True).text_bytes == sum(len(t.encode()) for t in TEXTS)


def test_nothing_to_score_is_an_error():
    with pytest.raises(UserError, match=r"has 1 token\(s\); scoring needs at least 2"):
        score(2, texts=["x"])


def test_an_empty_text_with_bos_and_eos_is_an_error():
    with pytest.raises(UserError, match="scoring needs at least 2, and some text"):
        score(2, texts=[""], bos=True)


def test_smoothing_and_dropout_play_no_part():
    assert score(4, cfg=replace(CFG, dropout=0.5)).nats == score(4).nats


def test_compressors_are_measured_on_the_same_bytes():
    content = tiny.text(5000).encode()
    sizes = compressors.bits_per_byte(content)
    assert 0.5 < sizes["gzip -9"] < 3
    assert set(sizes) == {"gzip -9", "xz -9"}
    assert compressors.bits_per_byte(b"") == {}


@pytest.mark.parametrize(("documents", "devices"), [("joined", 8), ("apart", 1)])
def test_evaluate_gives_the_runs_final_loss_again(tmp_path, documents, devices, capsys, request):
    if devices == 1:
        request.getfixturevalue("one_device_here")
    text = tiny.text(9000)
    (tmp_path / "text.txt").write_text(text)
    exp = tiny.experiment(tmp_path / "text.txt", steps=4, evaluate_every=4, tokenizer=Bytes(bos=True, eos=True))
    exp = replace(exp, data=replace(exp.data, documents=documents))
    loop.train(exp, tmp_path / "run")
    moved = tmp_path / "elsewhere"
    (tmp_path / "run").rename(moved)
    (tmp_path / "text.txt").unlink()
    (tmp_path / "tail.txt").write_text(text[8100:])
    final = [json.loads(line) for line in (moved / "metrics.jsonl").read_text().splitlines()][-1]

    words = ["--model", str(moved), "--json", str(tmp_path / "out.json")]
    options = command_line.parser_for("evaluate").parse_args(words)
    for given in (None, str(tmp_path / "tail.txt"), str(moved / "held_out.jsonl")):
        options.text = given
        assert commands.run("evaluate", options, []) == 0
        written = json.loads((tmp_path / "out.json").read_text())
        assert written["eval_loss"] == final["eval_loss"]
        assert written["bits_per_byte"] == final["bits_per_byte"]
        assert "context 16, stride 16" in capsys.readouterr().out


def test_a_context_that_the_runs_loss_chunk_does_not_divide_is_one_line():
    exp = tiny.experiment("unused", task=CausalLM(loss_chunk=8))
    assert with_context(exp, 8).length == 8
    with pytest.raises(UserError, match="^--context 12: rows of 12 tokens are not a multiple of task.loss_chunk 8$"):
        with_context(exp, 12)
