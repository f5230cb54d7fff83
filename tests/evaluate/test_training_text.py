"""What a model has seen: windows that it writes on word for word, n-grams that two texts share, perplexity by domain.

The run's text is made of what its random model writes, so that it knows some of it by heart.
"""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from lmjax.data.mixture import Mixture, Weighted
from lmjax.data.sources import JsonLines, OtherFiles, TextFiles
from lmjax.data.store import TokenStream, open_store
from lmjax.errors import UserError
from lmjax.evaluate import contamination
from lmjax.evaluate.contamination import Contamination, Grams, covered, overlaps
from lmjax.evaluate.domains import Domains
from lmjax.evaluate.memorization import Memorization, drawn
from lmjax.evaluate.rolling import Perplexity
from lmjax.evaluate.settings import Settings
from lmjax.experiment import DataConfig
from lmjax.generate.many import write_all
from lmjax.generate.sampling import choice
from lmjax.language_model import LanguageModel
from lmjax.models import transformer
from lmjax.run_directory import RunDirectory
from lmjax.tokenizers import Bytes
from tests import tiny
from tests.evaluate.models import write_lines

GIVEN, WRITTEN = 8, 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Of a run that never trained: half of its training documents are what the model writes, and no held-out one."""
    folder = tmp_path_factory.mktemp("seen")
    tokenizer = Bytes().build(list)
    cfg = tiny.gpt2(vocab=258, context=32)
    params = transformer.init_params(cfg, jax.random.key(0))
    # only letters are written: all other rows give a logit of 0
    keep_V = (np.arange(258) >= ord("a")) & (np.arange(258) <= ord("z"))
    params = params | {"embedding": jax.tree.map(lambda x: x * keep_V[:, None], params["embedding"])}
    rng = np.random.default_rng(0)
    random = rng.integers(ord("a"), ord("z") + 1, (30, GIVEN + WRITTEN)).astype(np.int32)
    model = LanguageModel(cfg, params, tokenizer, folder / "run")
    news = write_all(cfg, model.params, list(random[:10, :GIVEN]), choice(), max_new_tokens=WRITTEN, known=256)
    known = [np.concatenate([row[:GIVEN], new]) for row, new in zip(random, news, strict=False)]
    texts = [bytes(row.tolist()).decode() for row in (*known, *random[10:])]
    write_lines(folder / "train.jsonl", *({"text": text, "kind": i % 2} for i, text in enumerate(texts[:20])))
    write_lines(folder / "held.jsonl", *({"text": text, "kind": "z"} for text in texts[20:]))
    source = JsonLines(path=str(folder / "train.jsonl"), held_out=OtherFiles(path=str(folder / "held.jsonl")))
    exp = replace(tiny.experiment(folder), model=cfg, tokenizer=Bytes(), data=DataConfig(source=source))
    run = RunDirectory(folder / "run")
    with run:
        run.lock()
        run.begin(exp, tokenizer, {"fingerprints": [open_store(source, tokenizer).fingerprint]}, "")
    return model


def settings(**more) -> Settings:
    return Settings(**{"data": None} | more)


def test_what_is_known_by_heart_is_found_and_what_is_held_out_is_not(model):
    sizes = {"prompt_tokens": GIVEN, "max_new_tokens": WRITTEN}
    result = Memorization.of(settings(**sizes)).run(model)
    figures = {name: figure.value for name, figure in result.figures.items()}
    assert result.examples == 20 and figures["exact_match"] == 0.5 and figures["held_out_exact_match"] == 0
    assert 6 <= figures["matched_tokens"] < 7 and figures["held_out_matched_tokens"] < 1
    assert result.protocol["held_out_windows_that_stand_in_the_training_text"] == 0
    assert [row["matched_tokens"] for row in result.extra["longest_matches"]] == [WRITTEN] * 10
    low, high = result.figures["exact_match"].interval
    assert (low, high) == pytest.approx((0.299, 0.701), abs=1e-3)  # Wilson's of 10 of 20
    assert Memorization.of(settings(**sizes, limit=4)).run(model).examples == 4
    for wrong, message in (
        ({"prompt_tokens": 30, "max_new_tokens": 3}, "the model's context is 32; expected both to fit in it"),
        ({"prompt_tokens": 16, "max_new_tokens": 8}, "no training document of .* has so many tokens"),
    ):
        with pytest.raises(UserError, match=message):
            Memorization.of(settings(**wrong)).run(model)
    with pytest.raises(UserError, match="--data: memorization reads the text that the run was trained on"):
        Memorization.of(settings(data="x"))


def test_windows_are_disjoint_and_within_documents():
    starts, size = np.array([0, 3, 40, 40, 61]), 7
    stream = TokenStream((np.arange(100, dtype=np.uint16),), starts, 1, None)
    windows = drawn([stream, stream], size, 1000, 0)
    assert len(windows) == 2 * (37 // 7 + 21 // 7 + 39 // 7)
    for half in (windows[: len(windows) // 2], windows[len(windows) // 2 :]):
        assert len(np.unique(half)) == half.size
        assert (np.diff(half) == 1).all()
        assert not np.isin(half[:, 1:], starts).any()
    some = drawn([stream, stream], size, 5, 1)
    assert some.shape == (5, size) and {*map(tuple, some)} != {*map(tuple, drawn([stream, stream], size, 5, 2))}
    assert drawn([stream], 60, 5, 0).shape == (0, 60)


def test_n_grams_are_those_of_brute_force(monkeypatch):
    rng = np.random.default_rng(0)
    ids, starts, n = rng.integers(0, 3, 4000).astype(np.uint16), np.sort(rng.choice(4000, 90, replace=False)), 6
    starts[0] = 0
    shards = (ids[:1500], ids[1500:])
    stream = TokenStream(shards, starts, 1, None)
    texts = [rng.integers(0, 3, size).astype(np.int32) for size in (50, 0, 5, 6, 200)]
    there = set()
    for begin, end in zip(starts, [*starts[1:], 4000], strict=True):
        there |= {tuple(ids[i : i + n].tolist()) for i in range(begin, end - n + 1)}
    expected = [[tuple(t[i : i + n].tolist()) in there for i in range(len(t) - n + 1)] for t in texts]
    assert {True, False} == {x for one in expected for x in one}
    # in one block, in many, and where every n-gram has the same hash
    for block, multiplier in ((1 << 20, contamination.MULTIPLIER), (64, contamination.MULTIPLIER), (512, np.uint64(0))):
        monkeypatch.setattr(contamination, "BLOCK", block)
        monkeypatch.setattr(contamination, "MULTIPLIER", multiplier)
        assert [one.tolist() for one in overlaps(texts, [stream], n)] == expected
    assert Grams([], 5).found_in(stream).shape == (0,)
    assert covered(np.array([True, False, False, True, False]), 8, 4) == 7 / 8


def test_contamination_and_the_score_of_what_is_clean(model, tmp_path):
    lines = [json.loads(line) for line in (model.path.parent / "train.jsonl").read_text().splitlines()]
    seen, near = "xx" + lines[3]["text"][2:18] + "yy", lines[4]["text"][:12] + "#" + lines[4]["text"][12:18]
    texts = [seen, near, "short", "nothing of this was there"]
    data = write_lines(tmp_path / "e.jsonl", *({"text": text, "question": text, "answer": "?"} for text in texts))
    result = Contamination.of(settings(data=str(data))).run(model)
    assert result.figures["documents_with_an_overlap"].value == 0.25
    assert result.extra["overlapping"] == [{"text": f"{data}:1", "overlap": 16 / 20}]
    assert result.figures["tokens_in_an_overlap"].value == pytest.approx(16 / sum(map(len, texts)))
    rows = {row["documents"]: row for row in result.tables["perplexity"]}
    clean = write_lines(tmp_path / "clean.jsonl", *({"text": text} for text in texts[1:]))
    alone = Perplexity.of(settings(data=str(clean))).run(model)
    assert rows["clean"]["bits_per_byte"] == pytest.approx(alone.figures["bits_per_byte"].value, rel=1e-5)
    assert rows["clean"]["texts"] == 3 and rows["with an overlap"]["texts"] == 1 and rows["all"]["texts"] == 4
    assert "1 texts have fewer than 13 tokens" in result.protocol["shorter"]
    fewer = Contamination.of(settings(data=str(data), ngram=12, template="{question} {answer}")).run(model)
    assert fewer.figures["documents_with_an_overlap"].value == 0.5
    with pytest.raises(UserError, match="no text of 99 tokens"):
        Contamination.of(settings(data=str(data), ngram=99)).run(model)


def test_perplexity_by_a_field_is_that_of_each_part_alone(model, tmp_path):
    texts, kinds = [tiny.text(60), "aaaa", tiny.text(40, 1), "bbbbbbb"], ["words", 1, "words", 1]
    both = [{"text": text, "kind": kind} for text, kind in zip(texts, kinds, strict=True)]
    result = Domains.of(settings(data=str(write_lines(tmp_path / "d.jsonl", *both)), by="kind")).run(model)
    whole = Perplexity.of(settings(data=str(tmp_path / "d.jsonl"))).run(model)
    assert result.figures == whole.figures
    rows = {row["kind"]: row for row in result.tables["domains"]}
    assert list(rows) == sorted(rows, key=lambda kind: rows[kind]["bits_per_byte"])
    for kind in ("words", "1"):
        part = write_lines(tmp_path / f"{kind}.jsonl", *(line for line in both if str(line["kind"]) == kind))
        alone = Perplexity.of(settings(data=str(part))).run(model).figures
        assert rows[kind]["bits_per_byte"] == pytest.approx(alone["bits_per_byte"].value, rel=1e-5)
        assert rows[kind]["token_perplexity"] == pytest.approx(alone["token_perplexity"].value, rel=1e-5)
    files = Domains.of(settings(data=str(tmp_path / "*.jsonl"), by="file")).run(model)
    assert {row["file"] for row in files.tables["domains"]} == {str(f) for f in tmp_path.glob("*.jsonl")}
    with pytest.raises(UserError, match="d.jsonl:1: no field 'topic'; it has 'text', 'kind'"):
        Domains.of(settings(data=str(tmp_path / "d.jsonl"), by="topic"))
    (tmp_path / "plain.txt").write_text("some text")
    with pytest.raises(UserError, match="plain.txt has no fields; expected .jsonl, or --by file"):
        Domains.of(settings(data=str(tmp_path / "plain.txt"), by="kind"))


def test_a_runs_own_held_out_text_by_field_and_by_source(model):
    (row,) = Domains.of(settings(by="kind")).run(model).tables["domains"]
    assert (row["kind"], row["texts"]) == ("z", 10)
    (row,) = Domains.of(settings(by="source")).run(model).tables["domains"]
    assert row["source"] == f"1: {model.path.parent / 'train.jsonl'}"
    with pytest.raises(UserError, match="no field 'topic'; it has 'text', 'kind'"):
        Domains.of(settings(by="topic")).run(model)


def test_text_that_is_not_there_or_another_now(model, tmp_path):
    elsewhere = LanguageModel(model.cfg, model.params, model.tokenizer, tmp_path)
    for suite in (Memorization.of(settings()), Domains.of(settings(by="source"))):
        with pytest.raises(UserError, match="is not a run, and its training text is not known"):
            suite.run(elsewhere)
    run = RunDirectory(tmp_path / "run")
    (tmp_path / "a.txt").write_text(tiny.text(300))
    source = Mixture(parts=(Weighted(source=TextFiles(path=str(tmp_path / "*.txt"))),))
    exp = replace(tiny.experiment(tmp_path), model=model.cfg, data=DataConfig(source=source))
    with run:
        run.lock()
        run.begin(exp, model.tokenizer, {"fingerprints": ["another"]}, "")
    moved = replace_path(model, run.path)
    with pytest.raises(UserError, match="is another text than it was trained on"):
        Memorization.of(settings()).run(moved)
    # the last part of a document is held out, and is known by its file's name
    (row,) = Domains.of(settings(by="file")).run(moved).tables["domains"]
    assert (row["file"], row["bytes"]) == ("a.txt", 30)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match="no such file"):
        Memorization.of(settings()).run(moved)
    # tokens that the cache has need no text
    (model.path.parent / "train.jsonl").rename(tmp_path / "away")
    assert Memorization.of(settings(prompt_tokens=GIVEN, max_new_tokens=WRITTEN)).run(model).examples == 20
    (tmp_path / "away").rename(model.path.parent / "train.jsonl")


def replace_path(model: LanguageModel, path) -> LanguageModel:
    return LanguageModel(model.cfg, model.params, model.tokenizer, path)
