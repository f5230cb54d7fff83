"""The suites: each figure against brute force over single texts, the protocol, and every mistake in one line."""

import json
import math
import re
from collections import Counter

import numpy as np
import pytest

import run as command_line
from lmjax.evaluate import suites
from lmjax.evaluate.choices import Classification, MultipleChoice
from lmjax.evaluate.likelihood import encode_pair, log_likelihoods
from lmjax.evaluate.minimal_pairs import MinimalPairs
from lmjax.evaluate.rolling import Perplexity
from lmjax.evaluate.settings import Settings
from lmjax.evaluate.writing import Generation, ids_of, write_until
from lmjax.generate.sampling import choice
from lmjax.tasks import text_metrics
from tests import tiny
from tests.evaluate.models import byte_model, write_lines
from tests.test_command_line import fails
from tests.test_command_line import trained as trained

pytestmark = pytest.mark.usefixtures("one_device")

CHOICES = [
    {"question": "ab?", "choices": ["zz", "aaa", "ü é"], "answer": 2},
    {"question": "what", "choices": ["yes", "no"], "answer": "no"},
    {"question": "ab?", "choices": ["cc", "word", "éé éé"], "answer": 1},
    {"question": "zz", "choices": ["zz", "z"], "answer": 1},
]
LABELLED = [{"text": text, "label": label} for text, label in zip("abcdefg", [1, 0, 1, 1, 0, 0, 1], strict=True)]
PAIRS = [
    {"sentence_good": good, "sentence_bad": bad, "UID": uid, "linguistics_term": term}
    for good, bad, uid, term in [
        ("the cats sit", "the cats sits", "agreement", "A"), ("a dog", "an dog", "article", "B"),
        ("he sits", "he sit", "agreement", "A"), ("same", "same", "article", "B"), ("we go", "we goes", "agreement", "A"),
    ]
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return byte_model(tmp_path_factory.mktemp("model"), tiny.gpt2(vocab=258, context=64))


def alone(model, context, continuation) -> float:
    return log_likelihoods(model, [encode_pair(model, context, continuation)]).sums[0]


def test_multiple_choice_is_brute_force(model, tmp_path):
    result = MultipleChoice.of(Settings(data=str(write_lines(tmp_path / "c.jsonl", *CHOICES)))).run(model)
    right = {"acc": [], "acc_norm": [], "acc_bytes": []}
    for line in CHOICES:
        context = f"Question: {line['question']}\nAnswer:"
        scores = [alone(model, context, " " + text) for text in line["choices"]]
        answer = line["choices"][line["answer"]] if isinstance(line["answer"], int) else line["answer"]
        sizes = {"acc": lambda t: 1, "acc_norm": len, "acc_bytes": lambda t: len(t.encode())}
        for name, size in sizes.items():
            best = max(range(len(scores)), key=lambda i: scores[i] / size(line["choices"][i]))
            right[name].append(line["choices"][best] == answer)
    assert len({tuple(r) for r in right.values()}) == 3  # the three differ here
    for name, each in right.items():
        p = np.mean(each)
        assert result.figures[name].value == p
        assert result.figures[name].stderr == pytest.approx(math.sqrt(p * (1 - p) / 3))
    assert result.protocol["template"] == "Question: {question}\nAnswer:"


def test_shots_are_other_examples_and_the_same_every_time(tmp_path):
    file = str(write_lines(tmp_path / "c.jsonl", *CHOICES))
    items = MultipleChoice.of(Settings(data=file, shots=2)).items
    solved = [
        f"Question: {q['question']}\nAnswer: {a}" for q, a in zip(CHOICES, ["ü é", "no", "word", "z"], strict=True)
    ]
    for i, item in enumerate(items):
        *shots, own = item.context.split("\n\n")
        assert own == f"Question: {CHOICES[i]['question']}\nAnswer:"
        assert len(set(shots)) == 2 and set(shots) < set(solved) - {solved[i]}
    assert MultipleChoice.of(Settings(data=file, shots=2)).items == items
    assert MultipleChoice.of(Settings(data=file, shots=2, limit=1)).items == items[:1]
    assert any(MultipleChoice.of(Settings(data=file, shots=2, seed=s)).items != items for s in range(1, 4))
    drawn = Counter(
        MultipleChoice.of(Settings(data=file, shots=1, seed=s)).items[3].context.split("\n\n")[0] for s in range(90)
    )
    assert set(drawn) == set(solved[:3]) and min(drawn.values()) > 15
    other = str(write_lines(tmp_path / "other.jsonl", CHOICES[0]))
    items = MultipleChoice.of(Settings(data=file, shots=1, shots_from=other)).items
    assert all(item.context.startswith(solved[0] + "\n\n") for item in items)
    # nor is an item its own shot where both are one file
    assert MultipleChoice.of(Settings(data=file, shots=2, shots_from=file)).items == MultipleChoice.of(
        Settings(data=file, shots=2)
    ).items  # fmt: skip


def test_classification_is_brute_force(model, tmp_path):
    settings = Settings(
        data=str(write_lines(tmp_path / "l.jsonl", *LABELLED)), template="{text} is", labels="0=bad, 1=good"
    )
    result = Classification.of(settings).run(model)
    true = [line["label"] for line in LABELLED]
    chosen = [max((0, 1), key=lambda i: alone(model, f"{line['text']} is", [" bad", " good"][i])) for line in LABELLED]
    counts = np.zeros((2, 2), int)
    np.add.at(counts, (true, chosen), 1)
    assert [[row["0"], row["1"]] for row in result.tables["confusion"]] == counts.tolist()
    assert result.figures["accuracy"].value == np.trace(counts) / 7
    assert result.figures["macro_f1"].value == pytest.approx(text_metrics.macro_f1(counts))
    low, high = result.figures["macro_f1"].interval
    assert 0 <= low <= result.figures["macro_f1"].value <= high <= 1
    assert [row["examples"] for row in result.tables["labels"]] == [3, 4]


def test_minimal_pairs_are_brute_force_and_their_mean_is_over_paradigms(model, tmp_path):
    result = MinimalPairs.of(Settings(data=str(write_lines(tmp_path / "p.jsonl", *PAIRS)))).run(model)
    right = {"agreement": [], "article": []}
    for pair in PAIRS:
        right[pair["UID"]].append(alone(model, "", pair["sentence_good"]) > alone(model, "", pair["sentence_bad"]))
    assert right["article"][1] == 0  # a tie is wrong
    means = {uid: np.mean(each) for uid, each in right.items()}
    assert {row["paradigm"]: row["accuracy"] for row in result.tables["paradigms"]} == means
    overall = result.figures["accuracy"]
    assert (
        overall.value
        == pytest.approx(np.mean(list(means.values())))
        != np.mean([x for each in right.values() for x in each])
    )
    errors = [math.sqrt(p * (1 - p) / (n - 1)) for p, n in ((means["agreement"], 3), (means["article"], 2))]
    assert overall.stderr == pytest.approx(math.hypot(*errors) / 2)
    assert [row["term"] for row in result.tables["terms"]] == ["A", "B"] and "fields" not in result.tables
    # of all pairs, and a tie is a confidence of a half in the wrong one
    margins = np.array(
        [alone(model, "", pair["sentence_good"]) - alone(model, "", pair["sentence_bad"]) for pair in PAIRS]
    )
    p_good = 1 / (1 + np.exp(-margins))
    (row,) = result.tables["calibration"]
    assert row["confidence"] == pytest.approx(np.mean(np.maximum(p_good, 1 - p_good)), rel=1e-4)
    assert row["brier"] == pytest.approx(np.mean(2 * (1 - p_good) ** 2), rel=1e-4)
    assert result.extra["calibration_details"][0]["accuracy"] == np.mean([x for each in right.values() for x in each])


def test_a_directory_of_paradigms_is_one_suite_and_files_name_them(model, tmp_path):
    for uid in ("agreement", "article"):
        bare = [{k: v for k, v in p.items() if k.startswith("sentence")} for p in PAIRS if p["UID"] == uid]
        write_lines(tmp_path / f"{uid}.jsonl", *bare)
    result = MinimalPairs.of(Settings(data=str(tmp_path), limit=2)).run(model)
    assert [(row["paradigm"], row["pairs"]) for row in result.tables["paradigms"]] == [("agreement", 2), ("article", 2)]


def test_perplexity_is_one_sum_over_words_bytes_and_tokens(model, tmp_path):
    texts = ["a few words, é!", tiny.text(200), "x"]
    file = write_lines(tmp_path / "t.jsonl", *({"text": text} for text in texts))
    result = Perplexity.of(Settings(data=str(file))).run(model)
    nats = 0.0
    for text in texts:
        ids = [256, *text.encode()]
        for start in range(1, len(ids), 64):
            end = min(start + 64, len(ids))
            pair = (np.array(ids[max(0, end - 65) : start]), np.array(ids[start:end]))
            nats -= log_likelihoods(model, [suites_pair(*pair)]).sums[0]
    words, size = sum(len(re.split(r"\s+", t)) for t in texts), sum(len(t.encode()) for t in texts)
    values = {name: figure.value for name, figure in result.figures.items()}
    assert values["word_perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-4)
    assert (
        values["byte_perplexity"]
        == pytest.approx(values["token_perplexity"])
        == pytest.approx(math.exp(nats / size), rel=1e-5)
    )
    assert values["bits_per_byte"] == pytest.approx(nats / size / math.log(2), rel=1e-6)
    assert result.extra["totals"]["tokens"] == size  # BOS is given, not scored
    low, high = result.figures["bits_per_byte"].interval
    assert low <= values["bits_per_byte"] <= high


def suites_pair(context, continuation):
    from lmjax.evaluate.likelihood import Pair

    return Pair(context, continuation)


def test_what_is_written_ends_before_the_first_stop(model):
    prompts = ["the", "a model reads", "x" * 100, ""]
    free = write_until(model, [ids_of(model, p) for p in prompts], (), 12, choice())
    assert free.cut == 1 and all(free.texts)
    alone = [write_until(model, [ids_of(model, prompt)], (), 12, choice()).texts[0] for prompt in prompts]
    assert alone == free.texts
    stop = free.texts[0][3:5]
    stopped = write_until(model, [ids_of(model, p) for p in prompts], ("never there", stop), 12, choice()).texts
    assert stopped == [text.split(stop)[0] for text in free.texts] != free.texts


def test_generation_scores_what_was_written(model, tmp_path):
    prompts = ["the", "a model"]
    texts = [
        text.strip() for text in write_until(model, [ids_of(model, p) for p in prompts], ("\n\n",), 6, choice()).texts
    ]
    lines = [{"prompt": prompts[0], "references": ["no", texts[0]]}, {"prompt": prompts[1], "reference": "other"}]
    settings = Settings(data=str(write_lines(tmp_path / "g.jsonl", *lines)), max_new_tokens=6)
    result = Generation.of(settings).run(model)
    references = [("no", texts[0]), ("other",)]
    assert result.extra["texts"] == texts
    assert result.figures["exact_match"].value == 0.5
    assert result.figures["f1"].value == np.mean([text_metrics.f1(*x) for x in zip(texts, references, strict=True)])
    assert result.figures["bleu"].value == text_metrics.bleu(texts, references).score
    assert "tok:13a" in result.protocol["bleu"]


def test_the_command_line_from_data_to_json(trained, tmp_path, capsys):
    """On all devices, on a run; and the same again to the last digit."""
    words = ["evaluate", "--model", str(trained / "run"), "--suite", "multiple-choice", "--shots", "1", "--limit", "3"]
    words += ["--template", "{question}\\n", "--data", str(write_lines(tmp_path / "c.jsonl", *CHOICES))]
    written = []
    for name in ("one.json", "two.json"):
        assert command_line.main([*words, "--json", str(tmp_path / name)]) == 0
        written.append(json.loads((tmp_path / name).read_text()))
    assert written[0] == written[1]
    out = capsys.readouterr().out
    assert "multiple-choice, 3 examples of " in out and "shots: 1, of the other examples, seed 0" in out
    assert re.search(r"^acc +\d\.\d{4} +\d\.\d{4} +\d\.\d{4} to \d\.\d{4}$", out, re.MULTILINE)
    assert written[0]["protocol"]["template"] == "{question}\n" and written[0]["protocol"]["limit"] == 3
    assert set(written[0]["metrics"]["acc"]) == {"value", "stderr", "interval_95"}
    assert (written[0]["step"], written[0]["examples"]) == (20, 3)


def test_the_command_line_of_suites_that_read_the_runs_own_text(trained, tmp_path, capsys):
    words = ["evaluate", "--model", str(trained / "run"), "--json", str(tmp_path / "out.json"), "--suite"]
    assert command_line.main([*words, "memorization", "--limit", "5"]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["examples"] == 5 and result["protocol"]["given_and_written"].startswith("8 tokens, then 8, greedily")
    assert set(result["metrics"]) >= {"exact_match", "held_out_exact_match"}
    assert command_line.main([*words, "perplexity", "--by", "file"]) == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())["domains"]
    assert (row["file"], row["bytes"]) == ("text.txt", 2000)
    assert "text.txt  1      2000" in capsys.readouterr().out


QUESTION = '{"question": "q", "choices": ["a", "b"], "answer": 0}\n'


@pytest.mark.parametrize(
    ("suite", "content", "more", "message"),
    [
        ("multiple-choise", "", [], "--suite multiple-choise: no such suite; did you mean multiple-choice?"),
        ("qq", "", [], "no such suite; expected one of multiple-choice, classification, minimal-pairs, perplexity, generation, "),
        ("multiple-choice", "", [], "d.jsonl: no example in it; expected lines of JSON"),
        ("multiple-choice", QUESTION + '{"question": \n', [], "d.jsonl:2: not JSON: "),
        ("multiple-choice", "[" * 100_000, [], "d.jsonl:1: not JSON: "),
        ("multiple-choice", QUESTION + "\n[1]\n", [], "d.jsonl:3: expected an object, not '[1]'"),
        ("multiple-choice", '{"question": "q", "choises": ["a"], "answer": 0}', [], "d.jsonl:1: no field 'choices'; it has 'question', 'choises', 'answer'"),
        ("multiple-choice", '{"x": 1}', [], "d.jsonl:1: no field 'question' or 'context'; it has 'x'"),
        ("multiple-choice", '{"question": "q", "context": "c"}', [], "d.jsonl:1: 'question' and 'context'; expected --template TEXT"),
        ("multiple-choice", '{"question": 3, "choices": ["a", "b"], "answer": 0}', [], "d.jsonl:1: 'question' is '3'; expected a text"),
        ("multiple-choice", '{"question": "q", "choices": [1, 2], "answer": 0}', [], "d.jsonl:1: 'choices' is '1'; expected a text"),
        ("multiple-choice", '{"question": "q", "choices": {}, "answer": 0}', [], "d.jsonl:1: 'choices' is '{}'; expected a list of texts"),
        ("multiple-choice", '{"question": "q", "choices": ["a"], "answer": 0}', [], "d.jsonl:1: 'choices' has 1 text(s); expected two or more"),
        ("multiple-choice", '{"question": "q", "choices": ["a", "b"], "answer": 2}', [], "d.jsonl:1: 'answer' is 2; expected a number from 0 to 1, or one of the choices"),
        ("multiple-choice", '{"question": "q", "choices": ["a", "b"], "answer": "c"}', [], "'answer' is 'c'"),
        ("multiple-choice", '{"question": "q", "choices": ["a", "b"], "answer": true}', [], "'answer' is True"),
        ("multiple-choice", '{"question": "\\ud800", "choices": ["a", "b"], "answer": 0}', [], "d.jsonl:1: half a surrogate pair at character 0 of 'question'"),
        ("multiple-choice", QUESTION, ["--shots", "1"], "--shots 1: there are 0 other examples"),
        ("multiple-choice", QUESTION, ["--shots", "-1"], "--shots -1: expected 0 or more"),
        ("multiple-choice", QUESTION, ["--limit", "0"], "--limit 0: expected 1 or more"),
        ("multiple-choice", QUESTION, ["--template", "{topic}"], "d.jsonl:1: no field 'topic'; it has 'question', 'choices', 'answer'"),
        ("multiple-choice", QUESTION, ["--labels", "a=b,c=d"], "--labels: multiple-choice takes no such option"),
        ("multiple-choice", QUESTION, ["--text", "t"], "--text: a suite reads --data FILE"),
        ("multiple-choice", QUESTION, ["--json", "nowhere/x.json"], "--json nowhere/x.json: expected a file in a directory that exists"),
        ("multiple-choice", QUESTION, ["--json", "s3://b/j"], "--json s3://b/j: expected a path of this machine"),
        ("multiple-choice", '{"question": "q", "choices": ["a", "bbbbbbbbbbbbbbbbbbbb"], "answer": 0}', [], "d.jsonl:1: ' bbbbbbbbbbbbbbbbbbbb' after 'Question: q"),
        ("classification", '{"text": "a", "label": "x"}', [], "one label, 'x'; expected two or more"),
        ("classification", '{"text": "a", "label": 1.5}', [], "d.jsonl:1: 'label' is 1.5; expected a text or a whole number"),
        ("classification", '{"text": "a", "label": 2}', ["--labels", "0=b,1=g"], "d.jsonl:1: 'label' is '2'; expected one of '0', '1'"),
        ("classification", '{"text": "a", "label": 2}', ["--labels", "0=b,1=b"], "--labels 0=b,1=b: expected LABEL=WORD,LABEL=WORD"),
        ("minimal-pairs", '{"sentence_good": "a"}', [], "d.jsonl:1: no field 'sentence_bad'"),
        ("minimal-pairs", '{"sentence_good": "a", "sentence_bad": "b"}', ["--shots", "1"], "--shots: minimal-pairs takes no such option"),
        ("perplexity", '{"txt": "a"}', [], "d.jsonl:1: no field 'text'; it has 'txt'"),
        ("perplexity", '{"text": ""}', [], "d.jsonl: no text in it"),
        ("perplexity", '{"text": "a"}', [], "d.jsonl: no token that follows another"),
        ("perplexity", '{"text": "a b"}', ["--by", "topic"], "d.jsonl:1: no field 'topic'; it has 'text'"),
        ("perplexity", '{"text": "a b", "topic": []}', ["--by", "topic"], "d.jsonl:1: 'topic' is '[]'; expected a text or a number"),
        ("memorization", "", [], "--data: memorization reads the text that the run was trained on"),
        ("contamination", '{"text": "a b"}', [], "no text of 13 tokens; expected a smaller --ngram"),
        ("contamination", '{"text": "a b"}', ["--ngram", "1"], "--ngram 1: expected 2 or more"),
        ("perplexity", '{"text": "a"}', ["--uncalibrated"], "--uncalibrated: perplexity takes no such option"),
        ("multiple-choice", QUESTION, ["--fit_temperature", "0.5"], "--fit_temperature 0.5: of 1 examples that is 0; expected at least one on each side"),
        ("multiple-choice", QUESTION, ["--fit_temperature", "none.jsonl"], "--fit_temperature none.jsonl: no such file"),
        ("generation", '{"prompt": "p", "reference": "r"}', ["--samples", "1"], "--samples 1: expected 2 or more"),
        ("generation", '{"prompt": "p", "reference": "r"}', ["--samples", "2", "--answer", "("], "--answer '(': no regular expression"),
        ("generation", '{"prompt": "", "reference": "r"}', [], "d.jsonl:1: an empty prompt, and the tokenizer has neither BOS nor EOS"),
        ("generation", '{"prompt": "p", "references": []}', [], "d.jsonl:1: 'references' is '[]'; expected a list of texts"),
        ("generation", '{"prompt": "p", "reference": "r"}', ["--max_new_tokens", "16"], "16 new tokens leave no room for a prompt in a context of 16"),
    ],
)  # fmt: skip
def test_mistakes(suite, content, more, message, trained, tmp_path, capsys):
    (tmp_path / "d.jsonl").write_text(content)
    words = ["evaluate", "--model", trained / "run", "--suite", suite, "--data", tmp_path / "d.jsonl", *more]
    assert message in fails(words, capsys, tmp_path)


def test_mistakes_without_a_suite_or_its_data(trained, tmp_path, capsys):
    words = ["evaluate", "--model", trained / "run"]
    assert "--data: this model is evaluated on a text; expected --text FILE, or --suite" in fails(
        [*words, "--data", "x"], capsys
    )
    assert "--shots: expected --suite NAME too" in fails([*words, "--shots", "0"], capsys)
    assert "--suite perplexity: expected --data FILE" in fails([*words, "--suite", "perplexity"], capsys)
    assert "--data nope: no such file" in fails([*words, "--suite", "perplexity", "--data", "nope"], capsys)
    assert "--data: the task of lm-eval: says itself" in fails([*words, "--suite", "lm-eval:x", "--data", "x"], capsys)
    assert set(suites.TAKES) == {*suites.SUITES, suites.HARNESS}
