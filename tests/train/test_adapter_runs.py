"""Runs with an adapter or frozen parts: resumed bit for bit, used by every verb, and bound to their base."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

import lmjax
import run as command
from lmjax.errors import UserError
from lmjax.interop.write import export
from lmjax.loaded import load_model
from lmjax.models.lora import LoRA
from lmjax.optim import AdamW
from lmjax.tokenizers import HuggingFace
from lmjax.train import loop
from lmjax.trees import count, named_leaves
from tests import tiny
from tests.train.test_resume import assert_same_run, losses, metrics, run

ADAPTER = LoRA(rank=2, weights=("blocks/*/kernel",), train=("final_norm/*",))
IDS = np.arange(30).reshape(2, 15) % 97


pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(text, a run)."""
    place = tmp_path_factory.mktemp("base")
    (place / "text.txt").write_text(tiny.text(9_000), encoding="utf-8")
    loop.train(tiny.experiment(place / "text.txt", steps=4, sample_every=4), place / "base")
    return place / "text.txt", place / "base"


def experiment(base, **changes):
    text, directory = base
    short = {"steps": 10, "evaluate_every": 5, "checkpoint_every": 4, "sample_every": 10, "init_from": str(directory)}
    return tiny.experiment(text, **short | {"optimizer": AdamW(b2=0.95)} | changes)


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    """A run with an adapter, from the base."""
    directory = tmp_path_factory.mktemp("adapted") / "run"
    loop.train(experiment(base, adapter=ADAPTER), directory)
    return directory


def params_of(path):
    return dict(named_leaves(jax.device_get(load_model(path).params)))


def test_ten_steps_of_an_adapter_equal_four_and_six(base, adapted, tmp_path, monkeypatch):
    assert [m[0] for m in losses(adapted)] == list(range(1, 11))
    assert_same_run(adapted, run(experiment(base, adapter=ADAPTER), tmp_path / "run", [4], monkeypatch))
    before, after = params_of(base[1]), params_of(adapted)
    still = {path for path in before if (before[path] == after[path]).all()}
    assert still == {path for path in before if not path.endswith("/kernel") and not path.startswith("final_norm/")}


def test_ten_steps_with_frozen_parts_equal_four_and_six(base, tmp_path, monkeypatch):
    """And a run that has begun needs what it began from no more: all is in its checkpoints."""
    shutil.copytree(base[1], tmp_path / "base")
    exp = experiment(base, freeze=("embedding", "blocks/attention/*"), init_from=str(tmp_path / "base"))
    stopped = run(exp, tmp_path / "stopped", [4], monkeypatch)
    straight = run(exp, tmp_path / "straight")
    shutil.rmtree(tmp_path / "base")
    assert_same_run(straight, stopped)
    loop.train(replace(exp, steps=11), straight)
    before, after = params_of(base[1]), params_of(straight)
    still = {path for path in before if (before[path] == after[path]).all()}
    assert still == {path for path in before if path == "embedding" or path.startswith("blocks/attention/")}


def test_a_checkpoint_of_an_adapter_holds_nothing_of_the_base(adapted):
    manifest = json.loads((adapted / "checkpoints" / "10" / "manifest.json").read_text())
    params = {path: shape for path, (shape, _) in manifest["leaves"].items() if path.startswith("params/")}
    assert {path.rsplit("/", 1)[1] for path in params} == {"lora_a", "lora_b", "bias", "scale"}
    held = sum(int(np.prod(shape)) for shape, _ in manifest["leaves"].values())
    numbers = sum(int(np.prod(shape)) for shape in params.values())
    # moments and two counters, the step and its number for the schedule
    assert 3 * numbers < held <= 3 * numbers + 4
    assert numbers < 0.25 * count(load_model(adapted).params)


def verb(capsys, *words):
    code = command.main([str(word) for word in words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_every_verb_takes_a_run_with_an_adapter(adapted, tmp_path, capsys):
    code, out, _ = verb(capsys, "evaluate", "--model", adapted, "--json", tmp_path / "result.json")
    final = [m for m in metrics(adapted) if "eval_loss" in m][-1]
    assert code == 0
    assert json.loads((tmp_path / "result.json").read_text())["eval_loss"] == final["eval_loss"]
    assert verb(capsys, "generate", "--model", adapted, "--prompt", "the ", "--max_new_tokens", 5)[0] == 0
    assert verb(capsys, "export", "--model", adapted, "--to", tmp_path / "hf")[0] == 0
    code, out, _ = verb(capsys, "verify", "--model", tmp_path / "hf", "--against", adapted)
    assert code == 0, out
    one, other = (np.asarray(lmjax.load(path)(IDS).logits) for path in (adapted, tmp_path / "hf"))
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())


def test_a_hugging_face_directory_and_another_adapter_are_bases_too(base, adapted, tmp_path):
    loaded = load_model(base[1])
    export(loaded.experiment.model, loaded.params, loaded.tokenizer, tmp_path / "hf")
    short = {"adapter": ADAPTER, "steps": 2, "sample_every": 2}
    known = {"tokenizer": HuggingFace(path=str(tmp_path / "hf"))}
    loop.train(experiment(base, **short, **known, init_from=str(tmp_path / "hf")), tmp_path / "on_hf")
    loop.train(experiment(base, **short), tmp_path / "on_run")
    assert losses(tmp_path / "on_hf") == losses(tmp_path / "on_run")
    loop.train(experiment(base, **short, init_from=str(adapted)), tmp_path / "second")
    before, after = params_of(adapted), params_of(tmp_path / "second")
    np.testing.assert_array_equal(before["embedding"], after["embedding"])
    assert (before["blocks/attention/q/kernel"] != after["blocks/attention/q/kernel"]).any()
    (tmp_path / "hf" / "model.safetensors").write_bytes(b"?")
    with pytest.raises(UserError, match="is not the model it was"):
        load_model(tmp_path / "on_hf")


def test_another_base_is_refused_and_a_missing_one_named(base, tmp_path, capsys):
    text, _ = base
    shutil.copytree(base[1], tmp_path / "base")
    exp = experiment(base, adapter=ADAPTER, init_from=str(tmp_path / "base"), steps=2, sample_every=2)
    loop.train(exp, tmp_path / "run")
    # the base goes on, and the checkpoint that it had is kept: all is well
    loop.train(tiny.experiment(text, steps=5, sample_every=4), tmp_path / "base")
    before = params_of(tmp_path / "run")
    shutil.rmtree(tmp_path / "base" / "checkpoints" / "5")
    for path, x in params_of(tmp_path / "run").items():
        np.testing.assert_array_equal(before[path], x, err_msg=path)
    shutil.rmtree(tmp_path / "base")
    loop.train(tiny.experiment(text, steps=4, seed=5, sample_every=4), tmp_path / "base")
    code, _, err = verb(capsys, "evaluate", "--model", tmp_path / "run")
    assert code == 2
    assert err.endswith(
        f"is an adapter of {tmp_path / 'base'}, which is not the model it was: its files have changed since the run began\n"
    )
    with pytest.raises(UserError, match="is not the model it was"):
        loop.train(replace(exp, steps=4), tmp_path / "run")
    shutil.rmtree(tmp_path / "base")
    code, _, err = verb(capsys, "generate", "--model", tmp_path / "run", "--prompt", "the")
    assert (code, err.count("\n")) == (2, 1)
    assert f"is an adapter of {tmp_path / 'base'}, which init_from in its experiment.json names: " in err
    assert "no such directory" in err


def test_a_base_given_by_a_relative_path_is_found_from_elsewhere(base, tmp_path, monkeypatch):
    monkeypatch.chdir(base[1].parent)
    exp = experiment(base, adapter=ADAPTER, init_from=base[1].name, steps=2, sample_every=2)
    loop.train(exp, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert load_model("run").step == 2


def test_an_adapter_cannot_come_or_go(base, adapted):
    with pytest.raises(UserError, match="a run begins with its adapter or has none"):
        loop.train(experiment(base), adapted, accept_changes=True)
