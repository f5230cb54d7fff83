"""Cached generation equals the whole forward pass; batches equal single prompts; new lengths compile nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.generate import decode as module
from lmjax.generate.decode import decode, generate, prefill
from lmjax.generate.many import write_all
from lmjax.generate.sampling import choice
from lmjax.models import transformer
from lmjax.models.cache import empty_cache, slots
from lmjax.models.feedforward import Experts
from tests import tiny

CONFIGS = {
    "gpt2": tiny.gpt2(), "llama": tiny.llama(), "multi_query": tiny.llama(kv_heads=1), "gemma": tiny.gemma(),
    "neox": tiny.neox(), "mixtral": tiny.mixtral(feedforward=Experts(count=5, chosen=2, width=24, capacity=0.3)),
}  # fmt: skip


@pytest.fixture(params=CONFIGS, scope="module")
def model(request):
    cfg = CONFIGS[request.param]
    params = tiny.params(cfg, 1)
    # layers stacked, as a run samples, and apart, as a loaded model writes
    return cfg, params if request.param in ("gpt2", "llama") else transformer.apart(params)


def prompts(cfg, lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, cfg.vocab, n) for n in lengths]


def full_logits(cfg, params, ids):
    """Logits after each token, by the forward pass that training uses; padded so that one program serves all."""
    padded = np.zeros((1, cfg.context), np.int32)
    padded[0, : len(ids)] = ids
    return np.asarray(tiny.logits(cfg, params, padded, np.arange(cfg.context)[None]))[0, : len(ids)]


def test_prefill_in_any_chunks_equals_the_forward_pass(model):
    """Chunks that do not divide the prompt for every kind of model; the others for windows, and for layers stacked."""
    cfg, params = model
    for chunk in (1, 3, 32) if cfg in (CONFIGS["llama"], CONFIGS["gemma"]) else (3,):
        prefill_equals_the_forward_pass(cfg, params, chunk)


def prefill_equals_the_forward_pass(cfg, params, chunk):
    (prompt,) = prompts(cfg, [20])
    cache, last = (
        empty_cache(cfg, 1, cfg.context, stacked=not isinstance(params["blocks"], tuple)),
        jnp.zeros((1, cfg.width)),
    )
    padded = np.zeros((1, -(-20 // chunk) * chunk), np.int32)
    padded[0, :20] = prompt
    for start in range(0, padded.shape[1], chunk):
        cache, last = prefill(cfg, params, padded[:, start : start + chunk], start, np.array([20]), cache, last)
    ours = transformer.logits(transformer.unembedding(cfg, params), last, cfg.logit_cap)[0]
    theirs = full_logits(cfg, params, prompt)[-1]
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1, np.abs(theirs).max()))
    assert slots(cache) == cfg.context


def test_every_greedy_token_is_the_most_probable_one_after_all_that_stands_before_it(model):
    cfg, params = model
    (prompt,) = prompts(cfg, [7])
    (new,) = generate(cfg, params, [prompt], max_new_tokens=20, how=choice())
    best = np.argmax(full_logits(cfg, params, [*prompt, *new]), axis=-1)
    assert len(new) == 20 and new.tolist() == best[6:-1].tolist()


@pytest.mark.parametrize("how", [choice(), choice(temperature=0.7, top_k=20), choice(temperature=1.0, top_p=0.9)])
def test_a_batch_of_different_lengths_gives_what_each_prompt_alone_gives(model, how):
    cfg, params = model
    batch = prompts(cfg, [1, 12, 5, 12])
    together = generate(cfg, params, batch, max_new_tokens=15, how=how, seed=4)
    for prompt, new in zip(batch, together, strict=True):
        (alone,) = generate(cfg, params, [prompt], max_new_tokens=15, how=how, seed=4)
        assert alone.tolist() == new.tolist()


def test_ids_that_only_fill_the_vocabulary_up_are_never_chosen():
    cfg, params = CONFIGS["gpt2"], tiny.params(CONFIGS["gpt2"], 1)
    for how in (choice(), choice(temperature=5.0)):
        (new,) = generate(cfg, params, prompts(cfg, [4]), max_new_tokens=25, how=how, known=7)
        assert len(new) == 25
        assert new.max() < 7


def test_seeds_and_repeated_prompts():
    cfg, params = CONFIGS["llama"], tiny.params(CONFIGS["llama"], 1)
    prompt = prompts(cfg, [5])[0]
    run = lambda batch, seed: [
        r.tolist() for r in generate(cfg, params, batch, max_new_tokens=20, how=choice(temperature=1.5), seed=seed)
    ]
    assert run([prompt], 0) == run([prompt], 0)
    assert run([prompt], 0) != run([prompt], 1)
    twice = run([prompt, prompt], 0)
    assert twice[0] != twice[1]
    assert twice[0] == run([prompt], 0)[0]
    apart = write_all(cfg, params, [prompt, prompt], choice(temperature=1.5), max_new_tokens=20, rows=1)
    assert [new.tolist() for new in apart] == twice


def test_stops_at_the_stop_token_which_is_left_out():
    cfg, params = CONFIGS["gpt2"], tiny.params(CONFIGS["gpt2"], 1)
    batch = prompts(cfg, [4, 9])
    free = generate(cfg, params, batch, max_new_tokens=15, how=choice())
    stop = int(free[0][6])
    stopped = generate(cfg, params, batch, max_new_tokens=15, how=choice(), stops=(stop,))
    for whole, cut in zip(free, stopped, strict=True):
        whole = whole.tolist()
        assert cut.tolist() == (whole[: whole.index(stop)] if stop in whole else whole)


def test_a_second_prompt_of_any_length_compiles_nothing():
    cfg = tiny.gpt2(context=200)
    params = tiny.params(cfg, 1)
    generate(cfg, params, prompts(cfg, [3]), max_new_tokens=5, how=choice())
    before = prefill._cache_size(), decode._cache_size()
    for length, new, how in [
        (150, 50, choice()),
        (64, 1, choice(temperature=1.0, top_k=3)),
        (65, 9, choice(temperature=0.5, top_p=0.5, min_p=0.1)),
    ]:
        generate(cfg, params, prompts(cfg, [length]), max_new_tokens=new, how=how)
    assert (prefill._cache_size(), decode._cache_size()) == before


def test_a_cache_of_several_sizes_reads_as_much_as_is_filled():
    """Texts of 100 and 300 tokens in 600 slots: two programs of attention, of which each reads its part."""
    cfg = tiny.llama(context=600)
    params = tiny.params(cfg, 1)
    batch = prompts(cfg, [100, 300])
    both = generate(cfg, params, batch, max_new_tokens=40, how=choice())
    for prompt, new in zip(batch, both, strict=True):
        text = np.concatenate([prompt, new])
        expected = np.argmax(full_logits(cfg, params, text), -1)[len(prompt) - 1 : -1]
        assert new.tolist() == expected.tolist()


def test_room_grows_by_doubling():
    cfg = tiny.gpt2(context=5000)
    assert [module.padded_length(n, cfg.context, shortest=module.SLOTS) for n in (3, 1024, 1025, 4000, 4999)] == [
        1024,
        1024,
        2048,
        4096,
        5000,
    ]


def test_fills_the_context_to_its_last_place():
    cfg, params = CONFIGS["gpt2"], tiny.params(CONFIGS["gpt2"], 1)
    (prompt,) = prompts(cfg, [30])
    (new,) = generate(cfg, params, [prompt], max_new_tokens=2, how=choice())
    first = int(np.argmax(full_logits(cfg, params, prompt)[-1]))
    assert new.tolist() == [first, int(np.argmax(full_logits(cfg, params, [*prompt, first])[-1]))]
    assert generate(cfg, params, [prompt], max_new_tokens=0, how=choice())[0].tolist() == []


@pytest.mark.parametrize(
    ("ids", "new", "message"),
    [
        ([1] * 30, 3, "prompt of 30 tokens [+] 3 new tokens = 33, more than the model's context of 32"),
        ([], 3, "the prompt is empty"),
        ([5, 97], 3, "token id 97 is outside the model's vocabulary of 97"),
        ([5, -3], 3, "token id -3 is outside the model's vocabulary of 97"),
        ([5], -40, "max_new_tokens is -40; expected 0 or more"),
        ([5], -1, "max_new_tokens is -1"),
    ],
)
def test_bad_prompts(ids, new, message):
    cfg = CONFIGS["gpt2"]
    with pytest.raises(UserError, match=message):
        generate(cfg, {}, [np.array(ids, int)], max_new_tokens=new, how=choice())


def test_chunk_is_smaller_than_the_test_contexts_are_long():
    """The test of new lengths above must cross a chunk's end."""
    assert module.CHUNK_ON_CPU < 150
