"""Weights in fewer bytes: the products are exactly those of the rounded numbers, in the whole model too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.generate.decode import generate
from lmjax.generate.sampling import choice
from lmjax.models import transformer
from lmjax.models.packed import pack, product, quantised
from lmjax.models.packed_params import pack_params
from lmjax.trees import named_leaves
from tests import tiny

CONFIGS = {
    "gpt2": tiny.gpt2(), "llama": tiny.llama(), "gemma": tiny.gemma(), "neox": tiny.neox(), "mixtral": tiny.mixtral(),
    "biased": tiny.llama(bias=True, out_bias=False),
}  # fmt: skip


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rows", [(1,), (2,), (8,), (2, 3), (1, 1)])
def test_int8_is_the_product_of_the_rounded_numbers(rows):
    x, w = numbers(*rows, 48), numbers(40, 48, seed=1)

    def rounded(a):
        step = np.abs(a).max(-1, keepdims=True).astype(np.float64) / 127
        return np.round(a / step) * step

    got = product(jnp.asarray(x), pack(jnp.asarray(w), "int8"))
    np.testing.assert_allclose(got, rounded(x) @ rounded(w).T, atol=2e-5)
    assert got.shape == (*rows, 40)
    # an eighth of a bit of each number is lost, no more
    assert 1e-4 < np.abs(got - x @ w.T).max() < 0.05 * np.abs(x @ w.T).max()


@pytest.mark.parametrize("rows", [1, 5])
def test_bfloat16_sums_in_float32(rows):
    x, w = numbers(rows, 500), numbers(40, 500, seed=1)
    rounded = lambda a: np.asarray(jnp.asarray(a).astype(jnp.bfloat16)).astype(np.float64)
    got = product(jnp.asarray(x), pack(jnp.asarray(w), "bfloat16"))
    np.testing.assert_allclose(got, rounded(x) @ rounded(w).T, atol=1e-4)


def test_zeros_have_a_step_too():
    whole, step = quantised(jnp.zeros((2, 4)))
    assert np.isfinite(step).all() and not whole.any()
    assert not product(jnp.zeros((2, 4)), pack(jnp.zeros((3, 4)), "int8")).any()


# which matrices are packed does not depend on the kind; of a dense and of a mixed model, both kinds
@pytest.mark.parametrize(
    ("name", "weights"), [*((name, "int8") for name in CONFIGS), ("gpt2", "bfloat16"), ("mixtral", "bfloat16")]
)
def test_a_whole_model(name, weights):
    """Logits near those of float32, and greedy generation the same as running the whole text again."""
    cfg = CONFIGS[name]
    whole = transformer.apart(tiny.params(cfg))
    packed = pack_params(cfg, whole, weights)
    ids = np.random.default_rng(2).integers(0, cfg.vocab, (1, 24))
    run = lambda params, ids: tiny.logits(cfg, params, ids, np.arange(24)[None])
    expected, got = run(whole, ids), run(packed, ids)
    error = float(jnp.sqrt(jnp.mean((got - expected) ** 2) / jnp.mean(expected**2)))
    assert 1e-4 < error < (0.02 if weights == "bfloat16" else 0.06)
    (new,) = generate(cfg, packed, [ids[0, :8]], max_new_tokens=6, how=choice())
    again = run(packed, np.concatenate([ids[0, :8], new, np.zeros(10, int)])[None])
    assert new.tolist() == np.argmax(again[0], -1)[7:13].tolist()


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_bytes_that_a_token_reads(weights):
    """A half and a quarter of float32, but for norms, biases and steps; the embedding, of which a row is read, aside."""
    cfg = tiny.gpt2(width=256, heads=4)
    whole = jax.eval_shape(transformer.apart, transformer.abstract_params(cfg))

    def size(params):
        return sum(x.size * x.dtype.itemsize for path, x in named_leaves(params["blocks"]))

    ratio = size(jax.eval_shape(lambda params: pack_params(cfg, params, weights), whole)) / size(whole)
    assert ratio < (0.51 if weights == "bfloat16" else 0.27)


def test_float32_is_left_as_it_is():
    params = transformer.apart(tiny.params(CONFIGS["gpt2"]))
    assert pack_params(CONFIGS["gpt2"], params, "float32") is params
