"""Labels: packed = alone, what counts is one place a text, mistakes with file and line, and a run from tables to figures."""

import json
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

import lmjax
import run as command_line
from lmjax.classifier import Classifier
from lmjax.data.packing import PackedRows
from lmjax.data.records import Table
from lmjax.data.sources import OtherFiles, Record
from lmjax.errors import UserError
from lmjax.evaluate.labels import Labeller
from lmjax.experiment import DataConfig
from lmjax.loaded import load_model
from lmjax.models import transformer
from lmjax.optim import Constant
from lmjax.tasks.classification import Classification, without_tokens
from lmjax.tasks.label_metrics import label_figures
from lmjax.tokenizers import Bytes
from lmjax.train import loop
from tests import tiny

TOKENIZER = Bytes(bos=True, eos=True).build(list)


def record(text, label="good", **more):
    return Record("n", "f:3", {"text": text, "label": label} | more)


def model(**changes):
    cfg = tiny.bert(vocab=258, outputs=2, token_types=2, pooler=True, masked_head=None)
    return replace(cfg, **changes)


MODELS = {
    "encoder, first token": (model(), Classification(labels=("bad", "good"))),
    "encoder, mean": (model(pooler=False), Classification(labels=("bad", "good"), pooling="mean")),
    "encoder, pairs": (model(), Classification(labels=("bad", "good"), second="other")),
    "decoder, last token": (tiny.llama(vocab=258, outputs=2), Classification(labels=("bad", "good"))),
}


@pytest.mark.parametrize("name", MODELS)
def test_packed_equals_alone(name):
    cfg, task = MODELS[name]
    params = transformer.init_params(cfg, jax.random.key(0))
    records = [record("abc", other="x"), record("defgh", "bad", other="yz"), record("ij", other="zzz")]
    examples = [example for one in records for example in task.encode(one, TOKENIZER, cfg, 32)]
    run = jax.jit(lambda batch: task.held_out_loss(cfg, params, batch))

    def losses(rows):
        return [run(batch) for batch in rows.in_order(1)]

    (together,) = losses(PackedRows(examples, length=32, source_length=32))
    apart = [losses(PackedRows([example], length=32, source_length=32))[0] for example in examples]
    assert together.weight == 3
    np.testing.assert_allclose(together.total, sum(loss.total for loss in apart), rtol=1e-5)
    assert together.correct == sum(loss.correct for loss in apart)


def test_the_place_of_the_label_has_seen_the_whole_text():
    for name in ("encoder, first token", "decoder, last token"):
        cfg, task = MODELS[name]
        run = jax.jit(partial(task.held_out_loss, cfg, transformer.init_params(cfg, jax.random.key(0))))
        first, second = (task.encode(record(text), TOKENIZER, cfg, 32) for text in ("abcd", "abxd"))
        losses = [run(next(PackedRows(e, length=32, source_length=32).in_order(1))).total for e in (first, second)]
        assert abs(losses[0] - losses[1]) > 1e-4, name


@pytest.mark.parametrize(
    ("task", "one", "message"),
    [
        (Classification(), record("abc", "fine"), "f:3: 'fine' is none of the labels bad, good"),
        (Classification(), record("abc", ""), "f:3: 'label' is ''; expected a text or a whole number"),
        (Classification(), record("abc", True), "f:3: 'label' is 'True'; expected a text or a whole number"),
        (Classification(), record("abc", "\ud83d"), "f:3: half a surrogate pair at character 0 of 'label'"),
        (Classification(), record(" "), "f:3: 'text' is empty"),
        (Classification(second="other"), record("abc", other=""), "f:3: 'other' is empty"),
        (Classification(text="body"), record("abc"), "f:3: no field 'body'; it has 'text', 'label'"),
        (Classification(), record("a" * 40), r"f:3: 42 tokens; a row has 32 \(task.too_long=cut"),
    ],
)
def test_mistakes_are_named(task, one, message):
    with pytest.raises(UserError, match=message):
        replace(task, labels=("bad", "good")).encode(one, TOKENIZER, model(), 32)


def test_a_long_text_is_cut_where_that_is_asked_for():
    task = Classification(labels=("bad", "good"), too_long="cut")
    (example,) = task.encode(record("a" * 40), TOKENIZER, model(), 32)
    assert len(example.tokens) == 32 and example.weights.sum() == 1


def test_labels_come_from_the_training_records():
    records = [record("a", "x"), record("b", 3), record("c", "x")]
    assert Classification().fitted(records).labels == ("3", "x")
    with pytest.raises(UserError, match="no training record is 'z'"):
        Classification(labels=("3", "x", "z")).fitted(records)
    with pytest.raises(UserError, match="'label' has one value in the training data: x"):
        Classification().fitted(records[:1])
    with pytest.raises(UserError, match="data.source: nothing to train on; expected records with labels"):
        Classification().fitted([])


def test_a_causal_model_is_not_read_at_its_first_token():
    with pytest.raises(ValueError, match="of a causal model the first token has seen no other"):
        Classification(pooling="first").check(tiny.llama())


def test_figures():
    figures = label_figures(("a", "b"), np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0]))
    assert figures.confusion == [[2, 1], [1, 1]]
    assert figures.accuracy == pytest.approx(0.6)
    assert figures.f1 == pytest.approx({"a": 2 / 3, "b": 0.5})
    low, high = figures.accuracy_interval
    # Wilson's interval of 3 of 5
    assert (low, high) == pytest.approx((0.2307, 0.8824), abs=1e-4)
    assert "true \\ predicted" in figures.lines()[2]
    assert figures.lines()[3].split() == ["a", "2", "1"]


def table(count, seed):
    """A text is good where it has more g than b; lengths differ."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(["g ", "b ", "- "], size=rng.integers(3, 7))) for _ in range(count)]
    texts = [text for text in texts if text.count("g") != text.count("b")]
    return "".join(f"{text}\t{'good' if text.count('g') > text.count('b') else 'bad'}\n" for text in texts)


def test_a_run_from_tables_to_figures(one_device_here, tmp_path, capsys, monkeypatch):
    for name, count, seed in (("train", 600, 0), ("dev", 200, 1), ("test", 200, 2)):
        (tmp_path / f"{name}.tsv").write_text(table(count, seed))
    source = Table(
        path=str(tmp_path / "train.tsv"), columns=("text", "label"), held_out=OtherFiles(path=str(tmp_path / "dev.tsv"))
    )
    exp = tiny.experiment(
        tmp_path, task=Classification(pooling="mean"), data=DataConfig(source=source), steps=60, batch_size=16,
        model=tiny.bert(vocab=None, context=32, pooler=False, masked_head=None, token_types=0, init_std=0.05),
        microbatches=2, evaluate_every=30, checkpoint_every=30, sample_every=60,
    )  # fmt: skip
    loop.train(exp, tmp_path / "run")
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["accuracy"] > 0.9
    assert json.loads((tmp_path / "run" / "experiment.json").read_text())["task"]["labels"] == ["bad", "good"]
    assert "predicted good" in (tmp_path / "run" / "samples.txt").read_text()

    (tmp_path / "run").rename(tmp_path / "moved")
    words = ["evaluate", "--model", str(tmp_path / "moved"), "--json", str(tmp_path / "out.json")]
    assert command_line.main([*words]) == 0
    own = json.loads((tmp_path / "out.json").read_text())
    assert own["accuracy"] == pytest.approx(last["accuracy"])
    assert command_line.main([*words, "--data", str(tmp_path / "test.tsv")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["accuracy"] > 0.9
    a_temperature_is_fitted_kept_and_used(words, tmp_path, capsys)
    (tmp_path / "bad.tsv").write_text("g g\tgood\nb\tpoor\n")
    for path, message in (("none.tsv", "none.tsv: no such file"), ("", ": is a directory; expected a file, or a glob")):
        capsys.readouterr()
        assert command_line.main([*words, "--data", str(tmp_path / path)]) == 2
        assert capsys.readouterr().err == f"error: --data {tmp_path}{'/' if path else ''}{message}\n"
    # before anything is predicted
    monkeypatch.setattr(Labeller, "__call__", None)
    assert command_line.main([*words, "--data", str(tmp_path / "bad.tsv")]) == 2
    assert "bad.tsv:2: 'poor' is none of the labels bad, good" in capsys.readouterr().err

    (tmp_path / "text.txt").write_text("g g b")
    # before a model of the next token is asked for, each would have written what means nothing
    for more in (
        ["generate"], ["evaluate", "--suite", "perplexity", "--data", str(tmp_path / "text.txt")],
    ):  # fmt: skip
        assert command_line.main([more[0], "--model", str(tmp_path / "moved"), *more[1:]]) == 2
        wanted = "is an encoder trained for Classification; expected a model of the next token"
        assert wanted in capsys.readouterr().err
    assert isinstance(lmjax.load(tmp_path / "moved"), Classifier)
    assert command_line.main(["export", "--model", str(tmp_path / "moved"), "--to", str(tmp_path / "out")]) == 2
    assert "export: task.pooling is mean" in capsys.readouterr().err
    assert command_line.main([*words, "--text", str(tmp_path / "text.txt")]) == 2
    assert "--text: Classification is evaluated on records" in capsys.readouterr().err


def a_temperature_is_fitted_kept_and_used(words, tmp_path, capsys):
    # some labels are wrong, so that the model is too sure
    for name, seed in (("fit", 3), ("noisy", 4)):
        lines = table(200, seed).splitlines()
        swapped = [x.replace("good", "x").replace("bad", "good").replace("x", "bad") for x in lines[::7]]
        lines[::7] = swapped
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n")

    def evaluated(*more):
        assert command_line.main([*words, "--data", str(tmp_path / "noisy.tsv"), *more]) == 0
        return json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out

    def predicted(*more):
        (tmp_path / "p.jsonl").unlink(missing_ok=True)
        command = ["predict", "--model", words[2], "--input", str(tmp_path / "noisy.tsv"), "--output"]
        assert command_line.main([*command, str(tmp_path / "p.jsonl"), *more]) == 0
        return [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()], capsys.readouterr().out

    before, _ = evaluated()
    plain, _ = predicted()
    assert before["temperature"] is None and len(before["calibrations"]) == 1
    fitted, out = evaluated("--fit_temperature", str(tmp_path / "fit.tsv"))
    (fit,) = json.loads((tmp_path / "moved" / "temperature.json").read_text())["fits"]
    t = fit["temperatures"]["labels"]["temperature"]
    assert (fit["step"], fit["data"]) == (60, str(tmp_path / "fit.tsv")) and f"temperature labels {t:.4f}" in out
    assert fit["temperatures"]["labels"]["nll_after"] < fit["temperatures"]["labels"]["nll_before"]
    # it changes no answer, and is the power of each probability
    used, out = evaluated()
    assert [one["temperature"] for one in used["calibrations"]] == [1, t] and "temperature.json" in out
    assert used["confusion"] == before["confusion"] and used["calibrations"] == fitted["calibrations"]
    assert used["calibrations"][0] == before["calibrations"][0]
    scaled, out = predicted()
    assert f"temperature labels {t:.4f}" in out
    for one, other in zip(plain, scaled, strict=True):
        powers = np.array(list(one["probabilities"].values())) ** (1 / t)
        assert list(other["probabilities"].values()) == pytest.approx((powers / powers.sum()).tolist(), rel=1e-6)
        assert one["label"] == other["label"]
    assert predicted("--uncalibrated")[0] == plain
    left_out, out = evaluated("--uncalibrated")
    assert left_out["calibrations"] == before["calibrations"] and "is left out" in out
    # nor is it another checkpoint's
    assert "has one of step 60" in evaluated("--step", "30")[1]
    shared, _ = evaluated("--fit_temperature", "0.25")
    kept = json.loads((tmp_path / "moved" / "temperature.json").read_text())["fits"]
    count = shared["calibrations"][0]["examples"] + kept[0]["examples"]
    assert len(kept) == 1 and kept[0]["examples"] == round(count / 4) and count == len(plain)
    for value, message in (("1.5", "a share above 0"), ("0.0001", "examples that is 0"), ("no", "no: no such file")):
        assert command_line.main([*words, "--fit_temperature", value]) == 2
        assert message in capsys.readouterr().err
    noisy = str(tmp_path / "noisy.tsv")
    assert command_line.main([*words, "--data", noisy, "--fit_temperature", noisy]) == 2
    assert f"--fit_temperature: {noisy}:1 is reported on too" in capsys.readouterr().err
    assert command_line.main([*words, "--fit_temperature", "0.5", "--uncalibrated"]) == 2
    assert "--fit_temperature and --uncalibrated: expected one of them" in capsys.readouterr().err
    (tmp_path / "moved" / "temperature.json").write_text('{"fits": [{}]}')
    assert command_line.main([*words]) == 2
    assert "temperature.json: damaged" in capsys.readouterr().err
    (tmp_path / "moved" / "temperature.json").unlink()


def test_token_dropout_leaves_out_tokens_of_training_only():
    """As a batch in which these tokens never stood; drawn by the key, at no place that predicts."""
    cfg, task = MODELS["encoder, mean"]
    dropped = replace(task, token_dropout=0.5)
    params = transformer.init_params(cfg, jax.random.key(0))
    examples = [e for text in ("abcdefgh", "ijklmnop") for e in task.encode(record(text), TOKENIZER, cfg, 32)]
    (batch,) = PackedRows(examples, length=32, source_length=32).in_order(1)
    one, again, other = (without_tokens(batch, 0.5, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.segments_BT, again.segments_BT)
    assert (np.asarray(one.segments_BT) != np.asarray(other.segments_BT)).any()
    gone = (np.asarray(one.segments_BT) == 0) & (batch.segments_BT > 0)
    assert 3 <= gone.sum() <= 15 and not gone[batch.weights_BT > 0].any()

    @partial(jax.jit, static_argnums=1)
    def loss(batch, task=task):
        return task.held_out_loss(cfg, params, batch).total

    assert loss(batch, dropped) == loss(batch)

    changed = np.where(gone, 7, batch.tokens_BT)
    assert loss(replace(one, tokens_BT=changed)) == pytest.approx(float(loss(one)), rel=1e-5)
    key = jax.random.key(5)
    trained, plain = (jax.jit(partial(one.training_loss, cfg))(params, batch, key).total for one in (dropped, task))
    assert trained == pytest.approx(float(loss(without_tokens(batch, 0.5, jax.random.fold_in(key, 1)))), rel=1e-5)
    assert plain == pytest.approx(float(loss(batch)), rel=1e-5)


def test_a_run_with_token_dropout_stopped_and_gone_on_with_is_one_that_was_not(one_device_here, tmp_path):
    (tmp_path / "train.tsv").write_text(table(200, 0))
    source = Table(path=str(tmp_path / "train.tsv"), columns=("text", "label"))
    exp = tiny.experiment(
        tmp_path, task=Classification(pooling="mean", token_dropout=0.3), data=DataConfig(source=source), steps=6,
        model=tiny.bert(vocab=None, context=32, pooler=False, masked_head=None, token_types=0, dropout=0.1),
        evaluate_every=3, checkpoint_every=3, sample_every=6,
    )  # fmt: skip
    for name, steps in (("whole", (6,)), ("halves", (3, 6))):
        for until in steps:
            loop.train(replace(exp, steps=until, schedule=Constant(peak=1e-2)), tmp_path / name)
    whole, halves = (load_model(tmp_path / name).params for name in ("whole", "halves"))
    jax.tree.map(np.testing.assert_array_equal, whole, halves)


def test_dropout_before_the_last_layer_keeps_its_mean():
    cfg = model(pooler=False, dropout=0.5)
    params = transformer.init_params(cfg, jax.random.key(0))
    hidden_D = jax.random.normal(jax.random.key(1), (cfg.width,))
    plain = transformer.outputs(cfg, params, hidden_D)
    keys = jax.random.split(jax.random.key(2), 20_000)
    drawn = jax.vmap(lambda key: transformer.outputs(cfg, params, hidden_D, dropout_key=key))(keys)
    assert drawn.std(0).min() > 0.3
    np.testing.assert_allclose(drawn.mean(0), plain, atol=0.05)
