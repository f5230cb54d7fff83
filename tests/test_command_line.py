"""The command line as a user meets it: one line for a mistake, exit code 2, nothing written."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

import run as command_line
from lmjax.data.sources import PythonLibrary
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, made once."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(tiny.text(20_000))
    (folder / "e.py").write_text(tiny.EXPERIMENT.format(text=str(folder / "text.txt")))
    assert command_line.main(["--config", str(folder / "e.py"), "--run", str(folder / "run")]) == 0
    return folder


def snapshot(folder):
    return {
        f: f.read_bytes()
        for f in folder.rglob("*")
        if f.is_file() and f.name != ".lock" and "__pycache__" not in f.parts
    }


def fails(words, capsys, folder=None):
    """The one line on stderr of a command that ends with exit code 2 and writes nothing."""
    before = snapshot(folder) if folder else None
    capsys.readouterr()
    try:
        code = command_line.main([str(word) for word in words])
    except SystemExit as stop:  # argparse
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2, out + err
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    if folder:
        assert snapshot(folder) == before
        assert not (folder / "runs").exists()
    return err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optimzer.b2=0.9"], "an experiment has no 'optimzer'; did you mean 'optimizer'?"),
        (["--optimizer.bb2=0.9"], "optimizer has no 'bb2'; did you mean 'b2'?"),
        (["--steps=many"], "--steps: expected a whole number, not 'many'"),
        (["--steps"], "--steps: expected --steps=value"),
        (["--steps=0"], "steps is 0; expected a positive number"),
        (["--optimizer=Adam"], "'Adam' is not one of AdamW | Adafactor | Lion | Muon; did you mean 'AdamW'?"),
        (["--model.heads=3"], "width 16 is not a multiple of heads 3"),
        (["--microbatches=3"], "batch_size 16 is not a multiple of microbatches 3"),
        (["--task.loss_chunk=7"], "rows of 16 tokens are not a multiple of task.loss_chunk 7"),
        (["--mesh.data=8", "--batch_size=6", "--microbatches=1"], "6 rows cannot be shared by 8 devices (mesh.data 8)"),
        (["--mesh.fsdp=3"], "mesh: data rest x fsdp 3 does not fit 8 device(s)"),
        (["--mesh.tensor=4", "--mesh.data=2"], "heads of size 2 cannot be split 4 ways"),
        (["--model.kernel=Splash"], "model.kernel=Splash cannot run here: it needs a TPU, this is cpu"),
        (["--model.products=fp8"], "model.products=fp8: cpu has no matrix products of fp8"),
        (["--model.vocab=200"], "model.vocab 200 is smaller than the tokenizer's 258 ids"),
        (["--data.source.path=nope.txt"], "data.source.path: nope.txt: no such file"),
        (["--data.source.path=empty.txt"], "empty.txt"),
        (["--data.source.path=short.txt"], "short.txt: the training text has 9 tokens; a window of 16 (model.context, or data.length) needs 17"),
        (["--data.source.path=latin.txt"], "latin.txt: not UTF-8 at byte 4 (0xe9)"),
        (["--data.source=JsonLines", "--data.source.path=bad.jsonl"], "bad.jsonl:2: not JSON"),
        (["--tokenizer=HuggingFace", "--tokenizer.path=nope"], "nope: expected a tokenizer.json, or a directory"),
        (["--run=text.txt"], "--run text.txt: expected a directory"),
        (["--run=text.txt/x"], "cannot be written to"),
        (["--run=/proc/x"], "--run /proc/x: cannot be written to"),
        (["--run=a[1]"], "a[1]: a run's path cannot hold [ ]"),
        (["--run=full"], "--run full: not empty, and not a run directory"),
        (["--seed=-1"], "seed is -1"),
        (["--optimizer.b2=1.5"], "optimizer.b2 is 1.5; expected a number from 0 to below 1"),
        (["--model.feedforward.width=-5"], "width is -5; expected a positive number"),
        (["--sampling.temperature=-1"], "temperature is -1.0; expected 0 or more"),
        (["--model.context=1"], "context is 1; a token and the one it predicts need 2"),
        (["--model.pattern.\u00b2.window=3"], "model.pattern has the parts 0 to 0, not '\u00b2'"),
        (["--freeze={[1]}"], "freeze: '{[1]}' fits no parameter"),
        ([f"--steps={'(' * 10_000}"], "--steps: expected a whole number"),
        (["positional"], "'positional': expected --key=value"),
    ],
)  # fmt: skip
def test_mistakes_in_training(words, message, place, capsys):
    (place / "empty.txt").write_text("")
    (place / "short.txt").write_text("ten bytes.")
    (place / "latin.txt").write_bytes("caf\u00e9".encode("latin-1")[:3] + b" " + b"\xe9")
    (place / "bad.jsonl").write_text('{"text": "good"}\n{"text": \n')
    (place / "full").mkdir()
    (place / "full" / "mine.txt").write_text("keep")
    assert message in fails(["train", "--config", "e.py", *words], capsys, place)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("experiment = 5\n", "expected a line `experiment = Experiment(...)`"),
        ("x = 1\nimport nonexistent_module\n", "e.py:2: No module named"),
        ("def broken(:\n", "e.py:1: invalid syntax"),
        ("from tests import tiny\nexperiment = tiny.experiment('x', batch_size=5)\n", "batch_size 5 is not a multiple"),
        ("from tests import tiny\nexperiment = tiny.experiment('x', steps='many')\n", "e.py:2: '<' not supported"),
        (
            "from tests import tiny\nexperiment = tiny.experiment('x', seed=1.5)\n",
            "seed: expected a whole number, not 1.5",
        ),
    ],
)
def test_mistakes_in_the_experiment_file(content, message, place, capsys):
    (place / "e.py").write_text(content)
    assert message in fails(["--config", "e.py"], capsys, place)


def test_mistakes_before_any_experiment(place, capsys):
    assert "no such file" in fails(["--config", "nope.py"], capsys, place)
    assert "no verb 'trian'; did you mean train?" in fails(["trian"], capsys, place)
    assert "--config" in fails(["train"], capsys, place)
    assert "unrecognised --promt" in fails(["generate", "--model", "x", "--promt", "y"], capsys, place)
    assert "nope: no such directory" in fails(["generate", "--model", "nope", "--prompt", "x"], capsys, place)
    (place / "folder").mkdir()
    assert "experiment.json: missing; expected a run directory" in fails(
        ["evaluate", "--model", "folder"], capsys, place
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "--prompt", "a" * 30, "--max_new_tokens", "5"], "more than the model's context of 16"),
        (["generate", "--prompt", ""], "the prompt is empty"),
        (["generate", "--prompt", "a", "--top_p", "2"], "top_p is 2.0"),
        (["generate", "--prompt", "a", "--step", "3"], "--step 3: "),
        (["generate", "--prompt", "a", "--seed", str(2**70)], "--seed 1180591620717411303424: expected a number"),
        (["generate", "--prompt", "a", "--step", "\u00b2"], "--step \u00b2: expected a number or best"),
        (["generate", "--prompt", "a", "--step", "9" * 5000], "expected a number or best"),
        (["generate", "--prompt", "a", "--step", "last"], "--step last: expected a number or best"),
        (["evaluate", "--text", "nope.txt"], "--text nope.txt: no such file"),
        (["evaluate", "--text", "latin.txt"], "latin.txt: not UTF-8 at byte 0"),
        (["evaluate", "--text", "empty.txt"], "scoring needs at least 2"),
        (["evaluate", "--text", "bad.jsonl"], "bad.jsonl:1: no field 'text'; it has 'body'"),
    ],
)
def test_mistakes_with_a_trained_model(words, message, trained, place, capsys):
    (place / "latin.txt").write_bytes(b"\xff")
    (place / "empty.txt").write_text("")
    (place / "bad.jsonl").write_text('{"body": "x"}\n')
    before = snapshot(trained)
    assert message in fails([words[0], "--model", trained / "run", *words[1:]], capsys)
    assert snapshot(trained) == before


def test_another_experiment_over_a_run_shows_the_difference(trained, capsys):
    line = fails(["--config", trained / "e.py", "--run", trained / "run", "--optimizer.b2=0.5"], capsys, trained)
    assert (
        "holds a run of another experiment: optimizer.b2: 0.95 -> 0.5 (--run DIR starts another run, --accept-changes"
        in line
    )


@pytest.mark.parametrize("verb", ["generate", "evaluate"])
def test_a_run_whose_only_checkpoints_are_damaged_is_an_error(verb, trained, tmp_path, capsys):
    shutil.copytree(trained / "run", tmp_path / "run")
    for manifest in (tmp_path / "run" / "checkpoints").glob("*/manifest.json"):
        manifest.write_text("{")
    prompt = ["--prompt", "a"] if verb == "generate" else []
    assert "no good checkpoint is left" in fails([verb, "--model", tmp_path / "run", *prompt], capsys)
    assert "no good checkpoint is left" in fails(["--config", trained / "e.py", "--run", tmp_path / "run"], capsys)


def test_generate_and_evaluate_of_a_copied_run(trained, tmp_path, capsys):
    moved = tmp_path / "a folder with spaces é"
    shutil.copytree(trained / "run", moved)
    assert (
        command_line.main(
            ["generate", "--model", str(moved), "--prompt", "the ", "--prompt", "a", "--max_new_tokens", "8"]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert out.startswith("the ")
    assert command_line.main(["evaluate", "--model", str(moved), "--step", "best"]) == 0
    assert "eval_loss" in capsys.readouterr().out


def test_generate_shows_how_probable_each_token_is(trained, capsys):
    words = ["generate", "--model", str(trained / "run"), "--prompt", "the", "--max_new_tokens", "5"]
    assert command_line.main([*words]) == 0
    plain = capsys.readouterr().out
    assert command_line.main([*words, "--show", "confidence"]) == 0
    first, prompt, *rest, last = capsys.readouterr().out.splitlines()
    assert first.startswith("each line: the probability") and prompt == "the" and last.startswith("5 tokens")
    told = [re.fullmatch(r"(\d\.\d{4})  ('.*')", line).groups() for line in rest]
    assert "the" + "".join(ast.literal_eval(text) for _, text in told) == plain.removesuffix("\n")
    assert all(0 < float(p) <= 1 for p, _ in told)


def test_data_shows_windows_and_the_round_trip(place, capsys):
    assert command_line.main(["data", "--config", "e.py", "--step=3", "--windows=2", "--data.documents=apart"]) == 0
    out = capsys.readouterr().out
    assert "step 3: 16 windows of 16 tokens; attention keeps documents apart" in out
    assert out.count("window ") == 2
    assert "round trip: exact for 1 held-out documents, 2,000 characters" in out
    assert not (place / "runs").exists()


def test_data_says_where_a_round_trip_is_not_exact(place, capsys):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny.text(5000).split("\n")), model_prefix=str(place / "m"), vocab_size=40, minloglevel=2
    )
    (place / "text.txt").write_text(tiny.text(2000) + "two  spaces" * 50)
    words = ["--tokenizer=SentencePiece", f"--tokenizer.path={place}/m.model"]
    assert command_line.main(["data", "--config", "e.py", *words]) == 0
    assert "round trip: NOT exact: held-out document 0 parts at character" in capsys.readouterr().out


# --- what only a process of its own can show


def wait_for(condition, process, seconds=120):
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_help_imports_nothing_heavy(place):
    code = "import sys, run\nrun.main(['--help'])\nrun.main([])\nprint(sorted(m for m in sys.modules if m in ('jax', 'numpy', 'flax')))"
    out = subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True, check=True).stdout
    assert "python run.py --config experiments/small.py" in out
    assert out.splitlines()[-1] == "[]"


def test_ctrl_c_saves_and_the_same_command_goes_on_while_a_second_run_is_kept_out(place, capsys):
    words = [
        "--config",
        "e.py",
        "--steps=100000",
        "--checkpoint_every=100000",
        "--evaluate_every=100000",
        "--sample_every=100000",
    ]
    metrics = place / "runs" / "tiny" / "metrics.jsonl"
    with tiny.spawn(words, place) as first:
        wait_for(lambda: metrics.exists() and metrics.stat().st_size > 2000, first)
        second = fails(words, capsys)
        assert f"in use by process {first.pid}" in second
        first.send_signal(signal.SIGINT)
        out, err = first.communicate(timeout=120)
    assert first.returncode == 130
    assert err == ""
    step = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert f"stopped by SIGINT after step {step}, saved; the same command goes on" in out
    with tiny.spawn(words, place) as again:
        wait_for(lambda: metrics.read_text().count("\n") > step + 5, again)
        again.send_signal(signal.SIGTERM)
        out, err = again.communicate(timeout=120)
    assert again.returncode == 143
    assert f"after step {step}\n" in out
    assert err == ""
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))


def test_a_reader_that_goes_away_does_not_end_the_run(place):
    read, write = os.pipe()
    with tiny.spawn(["--config", "e.py", "--steps=3"], place, stdout=write) as process:
        os.close(write)
        os.read(read, 10)
        os.close(read)
        _, err = process.communicate(timeout=180)
    assert (process.returncode, err) == (0, "")
    assert (place / "runs/tiny/checkpoints/3/manifest.json").exists()


def test_no_home_no_terminal_and_another_folder(place):
    env = tiny.environment_of_a_process() | {"TMPDIR": str(place), "PYTHONHASHSEED": "5", "HOME": str(place / "home")}
    del env["LMJAX_CACHE"]
    with tiny.spawn(["--config", "e.py", "--steps=3", "--run", "a b/ü"], place, env=env) as process:
        out, err = process.communicate(timeout=180)
    assert (process.returncode, err) == (0, "")
    assert "step 1/3  loss " in out
    assert (place / "a b/ü/experiment.json").exists()
    assert (place / "home/.cache/lmjax/tokens").is_dir()


def test_small_experiment_takes_any_number_of_steps_from_twelve(tmp_path, monkeypatch, capsys):
    """On eight devices, on the user's own text, with every interval overridden."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text("".join(d.text for d in PythonLibrary().documents())[:300_000])
    words = [
        "--config", str(tiny.ROOT / "experiments/small.py"), "--steps=12", "--batch_size=16", "--mesh.fsdp=8",
        "--data.source=TextFiles", "--data.source.path=my.txt", "--tokenizer.vocab_size=512", "--evaluate_every=5",
        "--checkpoint_every=7", "--sample_every=3", "--model.width=48", "--model.layers=1", "--model.context=32",
    ]  # fmt: skip
    assert command_line.main(words) == 0
    out = capsys.readouterr().out
    assert "in force: 8 x cpu (cpu) | mesh fsdp 8 | attention Blocks (fastest on cpu) | float32" in out
    for part in (
        "step 1/12  loss",
        "bits per byte: this model",
        "gzip -9",
        "xz -9",
        "sample: ",
        "written to runs/small",
        "embedding",
    ):
        assert part in out
