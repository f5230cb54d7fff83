"""The same exported weights by lm-eval's own backend for transformers and by ours: requests one by one, and scores."""

from dataclasses import replace

import numpy as np
import pytest
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lmjax.evaluate.harness import Harness, HarnessTask
from lmjax.interop.write import export
from lmjax.language_model import load
from lmjax.tokenizers import HuggingFace, SentencePiece
from tests import tiny
from tests.interop.directories import gpt2_tokenizer_files, params_of
from tests.lm_eval import local_tasks

TEXT = tiny.text(6000)


def merges(folder):
    """GPT-2's kind: no BOS around a text, one token for both ends."""
    gpt2_tokenizer_files(folder)
    return HuggingFace(path=str(folder), bos=None, eos="<|endoftext|>")


KINDS = {
    "gpt2, no BOS": (tiny.gpt2(context=48), merges),
    "llama, BOS": (tiny.llama(qk_norm=False, context=48), lambda folder: SentencePiece(vocab_size=300)),
}


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """(theirs, ours) of one directory."""
    folder = tmp_path_factory.mktemp("model")
    cfg, make = KINDS[request.param]
    tokenizer = make(folder).build(lambda: [TEXT])
    cfg = replace(cfg, vocab=tokenizer.vocab_size)
    export(cfg, params_of(cfg), tokenizer, folder / "out")
    theirs = HFLM(pretrained=str(folder / "out"), device="cpu", dtype="float32", batch_size=3)
    return theirs, Harness(load(folder / "out"))


def requests(kind, *arguments):
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


def test_log_likelihoods_are_theirs_one_by_one(both):
    pairs = [
        ("the model", " reads"),
        ("the model ", "reads"),
        ("", "the model"),
        ("a\n\n", " words"),
        ("hell", "o dog"),
    ]
    pairs += [(TEXT[: 40 * i], TEXT[40 * i : 45 * i]) for i in range(1, 9)]
    theirs, ours = (lm.loglikelihood(requests("loglikelihood", *pairs)) for lm in both)
    assert np.array([a for a, _ in ours]) == pytest.approx(np.array([a for a, _ in theirs]), rel=1e-5, abs=1e-4)
    assert [bool(greedy) for _, greedy in ours] == [bool(greedy) for _, greedy in theirs]
    assert both[1].cut > 0


def test_rolling_log_likelihoods_are_theirs(both):
    texts = [(TEXT[:n],) for n in (1, 30, 150, 400, 1000)]
    theirs, ours = (lm.loglikelihood_rolling(requests("loglikelihood_rolling", *texts)) for lm in both)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_greedy_texts_are_theirs(both):
    settings = {"until": ["e"], "max_gen_toks": 8, "do_sample": False}
    prompts = [(prompt, settings) for prompt in ("the model", "because every text", TEXT[:200])]
    theirs, ours = (lm.generate_until(requests("generate_until", *prompts)) for lm in both)
    assert ours == theirs


@pytest.mark.parametrize("name", local_tasks.WAYS)
def test_scores_of_tasks_are_theirs(both, name, tmp_path):
    folder = local_tasks.write(tmp_path)
    loaded = TaskManager(include_defaults=False).load([str(folder / f"{name}.yaml")])
    loaded["tasks"][name].set_config(key="num_fewshot", value=0)
    theirs = evaluator.evaluate(both[0], loaded, bootstrap_iters=0, log_samples=False)["results"][name]
    task = HarnessTask.of(str(folder / f"{name}.yaml"), limit=None)
    ours = task.run(both[1].model).extra["lm_eval"]["results"][name]
    values = {key: value for key, value in ours.items() if isinstance(value, float) and "stderr" not in key}
    assert len(values) >= 2
    for key, value in values.items():
        assert value == pytest.approx(theirs[key], rel=1e-3, abs=1e-3), key
