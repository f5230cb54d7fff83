"""lm-eval's own harness on our models, offline: its figures are those of our suites and of single texts."""

import json
import math

import pytest
from lm_eval.api.instance import Instance

import run as command_line
from lmjax.errors import UserError
from lmjax.evaluate.harness import Harness, HarnessTask
from lmjax.evaluate.likelihood import encode_pair, log_likelihoods
from lmjax.evaluate.rolling import Perplexity
from lmjax.evaluate.settings import Settings
from lmjax.generate.decode import generate
from lmjax.generate.sampling import choice
from lmjax.tokenizers.sides import prompt_ids
from tests import tiny
from tests.evaluate.models import byte_model
from tests.lm_eval import local_tasks
from tests.test_command_line import fails
from tests.test_command_line import trained as trained


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return byte_model(tmp_path_factory.mktemp("model"), tiny.gpt2(vocab=258, context=64))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return local_tasks.write(tmp_path_factory.mktemp("tasks"))


def lines(tasks):
    return [json.loads(line) for line in (tasks / "data.jsonl").read_text().splitlines()]


def run(tasks, name, model, **more):
    return HarnessTask.of(str(tasks / f"{name}.yaml"), limit=more.pop("limit", None), **more).run(model)


def test_choices_are_brute_force(model, tasks):
    result, right, norm = run(tasks, "local_choices", model), [], []
    for line in lines(tasks):
        pairs = [encode_pair(model, line["question"], f" {text}") for text in line["choices"]]
        sums = log_likelihoods(model, pairs).sums
        right.append(sums.argmax() == line["answer"])
        norm.append((sums / [len(text) for text in line["choices"]]).argmax() == line["answer"])
    p = sum(right) / len(right)
    figures = result.figures
    assert figures["local_choices: acc"].value == p != figures["local_choices: acc_norm"].value == sum(norm) / len(norm)
    assert figures["local_choices: acc"].stderr == pytest.approx(math.sqrt(p * (1 - p) / (len(right) - 1)))
    assert (result.examples, result.protocol["shots"]) == (12, "local_choices 0")
    assert result.protocol["longer_ones_cut_on_the_left"] == 3  # the choices of one question


def test_shots_and_limit_are_the_harnesss(model, tasks):
    result = run(tasks, "local_choices", model, limit=5, shots=2)
    assert (result.examples, result.protocol["shots"]) == (5, "local_choices 2")
    assert result.extra["lm_eval"]["n-samples"]["local_choices"] == {"original": 12, "effective": 5}


def test_rolling_perplexity_is_our_suites(tasks, tmp_path):
    """Without BOS, which the harness would score after BOS; the first token then has nothing before it."""
    model = byte_model(tmp_path, tiny.gpt2(vocab=258, context=24), bos=False)
    theirs, ours = run(tasks, "local_text", model), Perplexity.of(Settings(data=str(tasks / "data.jsonl"))).run(model)
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert theirs.figures[f"local_text: {name}"].value == pytest.approx(ours.figures[name].value, rel=1e-6)


def test_writing_stops_before_the_first_of_its_strings(model, tasks):
    requests = [
        Instance("generate_until", {}, (line["question"], {"until": ["e", " a"], "max_gen_toks": 7}), 0)
        for line in lines(tasks)
    ]
    texts = Harness(model).generate_until(requests)
    for request, text in zip(requests, texts, strict=True):
        ids = prompt_ids(request.args[0], model.tokenizer)[-57:]
        (new,) = generate(model.cfg, model.params, [ids], max_new_tokens=7, how=choice(), stops=(257,), known=258)
        assert text == model.tokenizer.decode(new).split("e")[0].split(" a")[0]
    result = run(tasks, "local_writing", model)
    assert {"local_writing: exact_match", "local_writing: chrf"} <= set(result.figures)


def test_settings_of_generation_that_there_are_not(model):
    request = Instance("generate_until", {}, ("a", {"until": [], "max_gen_toks": 3, "repetition_penalty": 2.0}), 0)
    with pytest.raises(UserError, match="generation_kwargs of the task: repetition_penalty there is not here"):
        Harness(model).generate_until([request])
    sampled = Instance("generate_until", {}, ("a", {"max_gen_toks": 9, "do_sample": True, "temperature": 5.0}), 0)
    greedy = Instance("generate_until", {}, ("a", {"max_gen_toks": 9, "do_sample": False, "temperature": 5.0}), 0)
    one, other = Harness(model).generate_until([sampled, greedy])
    assert one != other == Harness(model).generate_until([greedy])[0]


def test_the_command_line(trained, tasks, tmp_path, capsys):
    words = ["evaluate", "--model", str(trained / "run"), "--suite", "lm-eval:local_choices", "--include", str(tasks)]
    assert command_line.main([*words, "--limit", "4", "--json", str(tmp_path / "out.json")]) == 0
    out, err = capsys.readouterr()
    assert "local_choices: acc_norm" in out and err == ""
    written = json.loads((tmp_path / "out.json").read_text())
    assert (
        written["lm_eval"]["results"]["local_choices"]["acc,none"] == written["metrics"]["local_choices: acc"]["value"]
    )
    assert written["protocol"]["scored_by"].startswith("lm-eval 0.4.")


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("hellaswagg", [], "lm-eval has no task 'hellaswagg'; did you mean 'hellaswag'?"),
        ("hellaswag", [], "lm-eval, hellaswag: Couldn't reach"),
        ("nope.yaml", [], "nope.yaml: no such file"),
        ("local_choices", ["--include", "nope"], "--include nope: no such directory"),
        ("TASKS/local_unsafe.yaml", [], "local_unsafe.yaml: the task runs code that the model writes; that is refused"),
        ("hellaswag", ["--template", "x"], "--template: lm-eval: takes no such option"),
    ],
)
def test_mistakes(name, more, message, trained, tasks, capsys):
    words = ["evaluate", "--model", trained / "run", "--suite", f"lm-eval:{name.replace('TASKS', str(tasks))}", *more]
    assert message in fails(words, capsys)
