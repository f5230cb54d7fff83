"""What a run writes down."""

import json
import math

import pytest

from lmjax.errors import UserError
from lmjax.evaluate import held_out as held_out_module
from lmjax.train import loop, report
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    text = folder / "text.txt"
    text.write_text(tiny.text(20_000))
    loop.train(tiny.experiment(text), folder / "run")
    return folder / "run"


def test_metrics_have_their_keys_at_every_step(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 21))
    assert [line["step"] for line in evaluations] == [10, 20]
    for line in steps:
        assert set(line) == {"step", "loss", "tokens", "tokens_per_second", "learning_rate", "grad_norm"}
        assert line["tokens"] == line["step"] * 16 * 16
    for line in evaluations:
        assert set(line) == {"step", "eval_loss", "perplexity", "bits_per_byte"}
        assert line["perplexity"] == pytest.approx(math.exp(line["eval_loss"]))


def test_tensorboard_has_the_same(finished):
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    (file,) = (finished / "tensorboard").iterdir()
    content, seen, at = file.read_bytes(), [], 0
    while at < len(content):
        length = int.from_bytes(content[at : at + 8], "little")
        record = content[at + 12 : at + 12 + length]
        assert int.from_bytes(content[at + 12 + length : at + 16 + length], "little") == masked_crc32c(record)
        event = event_pb2.Event.FromString(record)
        seen += [(event.step, value.tag) for value in event.summary.value]
        at += 16 + length
    assert {step for step, tag in seen if tag == "loss"} == set(range(1, 21))
    assert {step for step, tag in seen if tag == "eval_loss"} == {10, 20}


def test_run_directory_is_complete(finished):
    names = {entry.name for entry in finished.iterdir()}
    assert names >= {
        "experiment.json", "environment.json", "data.json", "tokenizer", "checkpoints", "metrics.jsonl", "tensorboard",
        "samples.txt", "held_out.jsonl",
    }  # fmt: skip
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["versions"]["jax"]
    assert environment["devices"]
    assert (finished / "samples.txt").read_text().startswith("--- step 20\n")


def test_control_characters_do_not_reach_the_terminal(capsys):
    report.Screen(1).say("a\x1b[31mb\x07\tc\n")
    assert capsys.readouterr().out == "a\\x1b[31mb\\x07\tc\n\n"


def test_an_evaluation_that_is_not_finite_stops_the_run(text_file, tmp_path, monkeypatch):
    real = held_out_module.HeldOut.eval_loss
    monkeypatch.setattr(held_out_module.HeldOut, "eval_loss", property(lambda self: real.fget(self) * math.nan))
    with pytest.raises(UserError, match="step 10: eval_loss nan"):
        loop.train(tiny.experiment(text_file), tmp_path / "run")
