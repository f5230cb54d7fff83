"""All kernels give the float64 formula; a kernel that cannot run says so."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.models import attention
from lmjax.models.attention import Auto, Blocks, CudnnFlash, Need, Reference, Splash
from tests import reference

KERNELS = {"reference": Reference(), "blocks": Blocks(size=7), "auto": Auto()}


def inputs(B=2, T=20, N=4, K=2, H=8, peak=4.0):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (B, T, heads, H)) for key, heads in zip(keys, (N, K, K), strict=True))
    segments = jnp.array([[1] * 9 + [2] * 11, [1] * 20])
    return peak * q, k, v, segments


attend = jax.jit(attention.attend, static_argnums=4)


# groups of any size take the same way in all kernels, with documents apart or not
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("K", "apart"), [(1, False), (2, False), (2, True), (4, True)])
def test_equals_float64_formula(name, K, apart):
    q, k, v, segments = inputs(K=K)
    ours = attend(q, k, v, segments if apart else None, KERNELS[name])
    for row in range(2):
        q64, k64, v64 = (np.asarray(x[row], np.float64) for x in (q, k, v))
        theirs = reference.attention(q64, k64, v64, np.asarray(segments[row]) if apart else np.ones(20))
        np.testing.assert_allclose(ours[row], theirs, atol=1e-5)


def test_blocks_have_the_gradient_of_the_reference():
    q, k, v, segments = inputs()

    def loss(q, k, v, kernel):
        return jnp.sin(attention.attend(q, k, v, segments, kernel)).sum()

    for a, b in zip(
        *(
            jax.jit(jax.grad(loss, (0, 1, 2)), static_argnums=3)(q, k, v, kernel)
            for kernel in (Reference(), Blocks(size=6))
        ),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_large_scores_stay_finite():
    q, k, v, _ = inputs(peak=1e4)
    assert np.isfinite(attend(q, k, v, None, Reference())).all()


def test_dropout_keeps_the_mean_and_depends_on_the_key():
    q, k, _, _ = inputs(B=1, peak=1.0)
    v = jnp.ones_like(k)
    draw = jax.jit(jax.vmap(lambda key: attention.attend(q, k, v, None, Reference(), rate=0.3, key=key)))
    draws = draw(jax.random.split(jax.random.key(0), 200))
    assert np.mean(draws) == pytest.approx(1.0, abs=0.01)
    assert (draws[0] != draws[1]).any()


NEED = Need(platform="gpu", dtype="bfloat16", length=1024, head_width=64, segments=False, dropout=False, cap=False)


def test_auto_takes_the_fastest_that_can_do_the_work():
    assert attention.choose(Auto(), NEED) == (CudnnFlash(), "fastest on gpu")
    assert attention.choose(Auto(), replace(NEED, platform="tpu")) == (Splash(), "fastest on tpu")
    assert attention.choose(Auto(), replace(NEED, platform="cpu")) == (Blocks(size=128), "fastest on cpu")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float32"}, "CudnnFlash: it computes in bfloat16, not float32"),
        ({"platform": "Tesla T4 7.5"}, "fastest on Tesla T4 7.5"),
        ({"segments": True}, "CudnnFlash: it cannot keep documents apart here"),
        ({"dropout": True}, "CudnnFlash: it has no dropout on the attention weights"),
        ({"platform": "tpu", "length": 100}, "Splash: it wants a length in multiples of 128, not 100"),
        ({"platform": "tpu", "causal": False}, "Splash: it is causal here"),
    ],
)
def test_auto_names_why_it_takes_another(change, reason):
    kernel, why = attention.choose(Auto(), replace(NEED, **change))
    assert isinstance(kernel, Blocks)
    assert why == reason


def test_a_kernel_asked_for_by_name_that_cannot_run_is_an_error():
    with pytest.raises(UserError, match="model.kernel=Splash cannot run here: it needs a TPU, this is cpu"):
        attention.choose(Splash(), replace(NEED, platform="cpu"))
