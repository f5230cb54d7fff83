"""Pretrained models at the command line: out, in again, compared, and every mistake in one line."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import run as command_line
from lmjax.interop.tensor_files import open_tensors, write_tensors
from lmjax.interop.write import export
from tests import tiny
from tests.interop.directories import gpt2_tokenizer_files, params_of, write
from tests.one_device import on_one_device
from tests.test_command_line import fails

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A folder with a run and its export."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "text.txt").write_text(tiny.text(20_000))
    (folder / "e.py").write_text(tiny.EXPERIMENT.format(text=str(folder / "text.txt")))
    run = [
        "--config",
        str(folder / "e.py"),
        "--run",
        str(folder / "run"),
        "--tokenizer.bos=True",
        "--tokenizer.eos=True",
    ]
    with on_one_device():
        assert command_line.main(run) == 0
    assert command_line.main(["export", "--model", str(folder / "run"), "--to", str(folder / "out")]) == 0
    return folder


def says(words, capsys, code=0):
    capsys.readouterr()
    assert command_line.main([str(word) for word in words]) == code
    return capsys.readouterr().out


def test_an_export_is_the_run_again(both, capsys):
    """Site by site, token by token, and in the loss of the run's own held-out text, to the last digit printed."""
    out = says(["verify", "--model", both / "out", "--against", both / "run", "--tolerance", "0"], capsys)
    assert "agree at all" in out and "PARTS" not in out
    prompt = ["--prompt", "the model", "--max_new_tokens", "5"]
    assert says(["generate", "--model", both / "out", *prompt], capsys) == says(
        ["generate", "--model", both / "run", *prompt], capsys
    )
    held_out = ["--text", both / "run" / "held_out.jsonl"]
    ours = says(["evaluate", "--model", both / "run"], capsys).splitlines()
    theirs = says(["evaluate", "--model", both / "out", *held_out, "--json", both / "out.json"], capsys).splitlines()
    assert ours[1:] == theirs[1:]
    assert json.loads((both / "out.json").read_text())["step"] is None


def test_verify_names_where_two_models_part(both, tmp_path, capsys):
    shutil.copytree(both / "out", tmp_path / "spoilt")
    arrays = {name: np.array(tensor.view()) for name, tensor in open_tensors(tmp_path / "spoilt").items()}
    arrays["transformer.h.1.mlp.c_proj.weight"][3] += 0.1
    write_tensors(tmp_path / "spoilt", [(name, x.dtype, x.shape, lambda x=x: x) for name, x in arrays.items()], 10**9)
    (both / "text of mine.txt").write_text(tiny.text(50))
    out = says(
        ["verify", "--model", both / "run", "--against", tmp_path / "spoilt", "--text", both / "text of mine.txt"],
        capsys,
        1,
    )
    assert "part first at blocks.1.hook_mlp_out" in out.splitlines()[-1]
    assert "16 tokens of" in out and "fewer than 500" in out


def test_a_model_of_the_hub_by_its_name(tmp_path):
    """From the hub's own cache, as its library lays it, in a process that may not use the network."""
    repository = tmp_path / "models--me--tiny"
    write("llama", repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    environment = tiny.environment_of_a_process() | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}

    code = "import lmjax; print(lmjax.load('hf:me/tiny').cfg.vocab); lmjax.load('hf:me/other')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "97\n"
    assert "lmjax.errors.UserError: hf:me/other: " in done.stderr


def test_a_model_without_tokenizer_files(tmp_path, capsys):
    write("llama", tmp_path / "out")
    (tmp_path / "text.txt").write_text("some text")
    for words in (["evaluate", "--text", tmp_path / "text.txt"], ["generate", "--prompt", "some"]):
        message = fails([words[0], "--model", tmp_path / "out", *words[1:]], capsys)
        assert "out: no tokenizer.json, vocab.json + merges.txt, tokenizer.model or spiece.model" in message


MISTAKES = [
    (["generate", "--model", "gpt2"], "gpt2: no such directory (a model of the Hugging Face hub is named hf:NAME)"),
    (["export", "--model", "run", "--to", "full"], "--to full: exists and is not an empty directory"),
    (["export", "--model", "run", "--to", "full/mine.txt"], "--to full/mine.txt: exists and is not an empty directory"),
    (["export", "--model", "run", "--to", "/proc/x"], "/proc"),
    (["export", "--model", "run", "--to", "new", "--dtype", "int8"], "invalid choice: 'int8'"),
    (["export", "--model", "run"], "required: --to"),
    (["evaluate", "--model", "out"], "--text FILE is needed: out is not a run"),
    (["evaluate", "--model", "out", "--text", "nope.txt"], "--text nope.txt: no such file"),
    (["evaluate", "--model", "out", "--text", "short.txt", "--context", "17"], "--context 17: expected 2 to 16"),
    (["evaluate", "--model", "out", "--text", "short.txt", "--step", "20"], "--step 20: out is not a run and has no steps"),
    (["verify", "--model", "transformers:out", "--against", "transformers:out"], "expected one that lmjax reads"),
    (["verify", "--model", "out", "--against", "other"], "the models differ in shape"),
    (["verify", "--model", "out", "--against", "run", "--text", "empty.txt"], "empty.txt: 1 token(s); expected at least 2"),
    (["verify", "--model", "out", "--against", "run", "--text", "none.jsonl"], "--text none.jsonl: no text in it"),
    (["verify", "--model", "out", "--against", "transformers:t5"], "transformers:t5 is an encoder-decoder; expected a model of"),
    (["verify", "--model", "out", "--against", "transformers:out"], "transformers:PATH needs PyTorch"),
    (["generate", "--model", "out", "--chat", "--prompt", "Hello"], "has no chat template; expected one in tokenizer_config.json"),
    (["generate", "--model", "pickled", "--prompt", "Hello"], "pickle"),
    (["generate", "--model", "unfit", "--prompt", "Hello"], "the tokenizer has 264 ids, more than config.json's vocab_size of 97"),
    (["train", "--config", "e.py", "--run", "new", "--init_from=nowhere"], "nowhere: no such directory"),
    (["train", "--config", "e.py", "--run", "new", "--init_from=other"], "init_from"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_mistakes(words, message, both, tmp_path, capsys, monkeypatch):
    for name in ("run", "out"):
        (tmp_path / name).symlink_to(both / name)
    (tmp_path / "e.py").write_text(tiny.EXPERIMENT.format(text=str(both / "text.txt")))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    (tmp_path / "short.txt").write_text("some text")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "none.jsonl").write_text("")
    if "other" in words or "--init_from=other" in words:
        write("gpt2", tmp_path / "other")
    if "transformers:t5" in words:
        export(tiny.t5(), params_of(tiny.t5()), None, tmp_path / "t5")
    if "pickled" in words:
        shutil.copytree(both / "out", tmp_path / "pickled")
        (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    if "unfit" in words:
        write("llama", tmp_path / "unfit")
        gpt2_tokenizer_files(tmp_path / "unfit")
        (tmp_path / "unfit" / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    assert message in fails(words, capsys, tmp_path)
