"""The scoring core: equal to a loop in float64, whatever shares a batch, by lm-eval's rules of what stands where."""

import jax
import numpy as np
import pytest

from lmjax.compilation import program
from lmjax.errors import UserError
from lmjax.evaluate import likelihood
from lmjax.evaluate.likelihood import Pair, encode_pair, log_likelihoods, prefix_of, rolling_pairs
from lmjax.generate.decode import generate
from lmjax.generate.sampling import choice
from lmjax.language_model import LanguageModel
from lmjax.sharding import Mesh, build_mesh
from lmjax.tokenizers import SentencePiece
from tests import reference, tiny
from tests.evaluate.models import byte_model, merging_model

CFG = tiny.llama(vocab=97, context=40)


def model_of(cfg=CFG) -> LanguageModel:
    return byte_model(None, cfg)


def random_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Of all lengths, some longer than the context."""
    rng = np.random.default_rng(seed)
    sizes = zip(rng.integers(1, 50, count), rng.integers(1, 40, count), strict=True)
    return [Pair(rng.integers(0, 97, a), rng.integers(0, 97, b)) for a, b in sizes]


def long_pairs(count: int) -> list[Pair]:
    """Of other lengths, which one program scores, all places of a row."""
    return [pair for pair in random_pairs(8 * count) if sum(map(len, pair)) > 34 and len(pair.continuation) > 10][
        :count
    ]


def test_equals_a_loop_over_every_token_in_float64():
    model, pairs = model_of(tiny.gpt2(context=40)), random_pairs(6)
    found = log_likelihoods(model, pairs)
    for pair, total in zip(pairs, found.sums, strict=True):
        row = np.concatenate(pair)[-41:]
        n = len(row) - 1
        logits = reference.logits(
            model.cfg, model.params | {"blocks": stacked(model)}, row[:-1], np.arange(n), np.ones(n)
        )
        expected = [np.log(reference.softmax(logits[i])[row[i + 1]]) for i in range(n - len(pair.continuation), n)]
        assert total == pytest.approx(sum(expected), rel=1e-5)
    assert found.cut == sum(len(a) + len(b) > 41 for a, b in pairs) > 0


def stacked(model):
    return jax.tree.map(lambda *layers: np.stack(layers), *model.params["blocks"])


def test_a_score_does_not_depend_on_what_shares_its_batch(monkeypatch):
    model, pairs = model_of(), long_pairs(37)
    assert len(pairs) == 37
    together = log_likelihoods(model, pairs).sums
    alone = np.concatenate([log_likelihoods(model, [pair]).sums for pair in pairs])
    assert together == pytest.approx(alone, rel=2e-6)
    assert log_likelihoods(model, pairs[::-1]).sums[::-1] == pytest.approx(alone, rel=2e-6)
    monkeypatch.setattr(likelihood, "TOKENS_ON_CPU", 100)
    assert log_likelihoods(model, pairs).sums == pytest.approx(alone, rel=2e-6)


def test_eight_devices_and_chunks_of_logits_change_nothing(monkeypatch):
    model, pairs = model_of(), long_pairs(21)
    one = log_likelihoods(model, pairs)
    mesh = build_mesh(Mesh())
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shared = LanguageModel(model.cfg, jax.device_put(model.params, everywhere), model.tokenizer, None)
    with jax.set_mesh(mesh):
        eight = log_likelihoods(shared, pairs)
    monkeypatch.setattr(
        likelihood, "loss_chunk", lambda rows, places, vocab, sizes: places // 2 if places % 2 == 0 else None
    )
    for other in (eight, log_likelihoods(model, pairs)):
        assert other.sums == pytest.approx(one.sums, rel=2e-6)
        assert other.greedy.tolist() == one.greedy.tolist()


def test_greedy_is_what_generation_writes():
    model, prompts = model_of(), [np.arange(3, 9), np.arange(40, 42)]
    news = generate(model.cfg, model.params, prompts, max_new_tokens=7, how=choice())
    written = [Pair(old, new) for old, new in zip(prompts, news, strict=True)]
    spoilt = [Pair(old, np.where(np.arange(len(new)) == 4, (new + 1) % 97, new)) for old, new in written]
    assert log_likelihoods(model, written + spoilt).greedy.tolist() == [True, True, False, False]


def test_few_programs_are_compiled():
    """Two lengths up to a context of 40, and each with all its places scored or a quarter of them."""
    cfg = tiny.gpt2(context=40, width=16)
    log_likelihoods(model_of(cfg), random_pairs(300))
    assert program(likelihood._scores, cfg, None)._cache_size() <= 4


def test_many_rows_have_four_lengths_for_one_and_the_same_scores(monkeypatch):
    lengths = [5, 8, 9, 17, 24, 25, 32, 33]
    assert likelihood.row_lengths(lengths, 40).tolist() == [32] * 7 + [40]
    monkeypatch.setattr(likelihood, "MANY_ON_CPU", 7)
    assert likelihood.row_lengths(lengths, 40).tolist() == [8, 8, 16, 24, 24, 32, 32, 40]
    # a context that no quarter of its length divides
    assert likelihood.row_lengths([3, 5, 8, 9, 10, 10, 10], 10).tolist() == [3, 6, 9, 9, 10, 10, 10]
    model, pairs = model_of(tiny.gpt2(context=40, width=16)), random_pairs(20)
    quarters = log_likelihoods(model, pairs).sums
    monkeypatch.undo()
    np.testing.assert_allclose(quarters, log_likelihoods(model, pairs).sums, atol=1e-4)


def test_white_space_moves_and_both_are_encoded_together(tmp_path):
    model = merging_model(tmp_path)
    hello, dog_after_space = 259, 261  # "hello"; "Ġdo"
    pair = encode_pair(model, "hello ", "dog")
    assert pair.context.tolist() == [hello]
    assert pair.continuation.tolist() == model.tokenizer.encode(" dog").tolist()
    assert pair.continuation[0] == dog_after_space
    # a merge across the border: the continuation is what is left after as many tokens as the context has
    pair = encode_pair(model, "hell", "o dog")
    assert (len(pair.context), pair.context.tolist()) == (1, model.tokenizer.encode("hell").tolist())
    assert pair.continuation.tolist() == model.tokenizer.encode("hello dog").tolist()[1:]


def test_what_stands_before_a_text_without_context(tmp_path):
    with_bos = byte_model(tmp_path)
    assert encode_pair(with_bos, "", "ab").context.tolist() == [256]
    assert encode_pair(with_bos, "", "ab").continuation.tolist() == [97, 98]
    assert encode_pair(with_bos, " ", "ab").continuation.tolist() == [32, 97, 98]
    assert encode_pair(with_bos, "x", "ab").context.tolist() == [256, 120]
    assert prefix_of(merging_model(tmp_path)) == 263  # no BOS: the token that ends a text
    assert prefix_of(unknown_to_its_run(tmp_path)) is None
    with_neither = byte_model(tmp_path, bos=False)
    pair = encode_pair(with_neither, "", "ab")
    assert (pair.context.tolist(), pair.continuation.tolist()) == ([97], [98])
    with pytest.raises(UserError, match=r"^'a' after '' has 0 token\(s\) to score; expected 1 to 24"):
        encode_pair(with_neither, "", "a")
    with pytest.raises(UserError, match=r"has 25 token\(s\) to score"):
        encode_pair(with_bos, "x", "a" * 25)


def unknown_to_its_run(path) -> LanguageModel:
    """SentencePiece has a BOS, which this run's policy never put before a text."""
    tokenizer = SentencePiece(vocab_size=300, bos=False, eos=False).build(lambda: [tiny.text(3000)])
    return LanguageModel(CFG, {"blocks": ()}, tokenizer, path)


def test_a_model_of_nan_is_refused():
    model = model_of()
    broken = LanguageModel(
        model.cfg, model.params | {"embedding": model.params["embedding"] * np.nan}, model.tokenizer, None
    )
    with pytest.raises(UserError, match="no finite likelihood to 5 of 5 texts"):
        log_likelihoods(broken, random_pairs(5))


def test_rolling_windows_are_those_of_lm_evals_docstring():
    """LM.loglikelihood_rolling, tokens 0 to 9 and a context of 4, made disjoint as its own models do."""
    pairs = rolling_pairs(np.array([99]), np.arange(10), 4)
    expected = [([99], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]
    assert [(a.tolist(), b.tolist()) for a, b in pairs] == expected


@pytest.mark.parametrize("prefix", [[99], []])
@pytest.mark.parametrize("size", [0, 1, 4, 5, 8, 9, 23])
def test_rolling_scores_every_token_once(prefix, size):
    pairs = rolling_pairs(np.array(prefix, int), np.arange(size), 4)
    scored = [int(i) for _, after in pairs for i in after]
    assert scored == list(range(size))[not prefix :]
    assert all(len(before) >= 1 and len(before) + len(after) <= 5 for before, after in pairs)
