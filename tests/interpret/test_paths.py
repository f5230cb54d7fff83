"""A path is what is added to the residual stream, read by its receivers, and nothing else."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.interpret import Patch, capture, patch
from lmjax.interpret.capture import LOGITS
from lmjax.interpret.patching import LogitDifference, activation_patching
from lmjax.interpret.paths import Receiver, path_patching
from tests import tiny
from tests.interpret.small import model_of
from tests.interpret.test_capture import ids

CFG = tiny.llama()
CLEAN, CORRUPT = ids(CFG, 1, 6, seed=1), ids(CFG, 1, 6, seed=2)
METRIC = LogitDifference(target=3, against=5)


def quiet(*arguments, **more):
    return path_patching(*arguments, say=lambda _: None, **more)


@pytest.fixture(scope="module")
def model():
    return model_of(CFG)


@pytest.fixture(scope="module")
def sent(model):
    """What each head adds to the residual stream in the clean run more than in the corrupt one, (L, N, B, T, D)."""
    names = ["*.attn.hook_z"]
    clean, corrupt = capture(model, CLEAN, names), capture(model, CORRUPT, names)
    kernels = [layer["attention"]["out"]["kernel"] for layer in model.params["blocks"]]
    return np.stack([jnp.einsum("BTNH,NHD->NBTD", clean[name] - corrupt[name], kernel)
                     for name, kernel in zip(clean, kernels, strict=True)])  # fmt: skip


def test_the_direct_path_to_the_logits_in_closed_form(model, sent):
    """unembedding . norm(residual + what the head adds): the norm of Llama by hand."""
    found = quiet(model, CLEAN, CORRUPT, METRIC, scaled=False)
    residual_BTD = capture(model, CORRUPT, "blocks.1.hook_resid_post")["blocks.1.hook_resid_post"]
    scale, matrix_VD = model.params["final_norm"]["scale"], model.params["unembedding"]
    for layer, head in np.ndindex(found.shape):
        x_D = np.asarray(residual_BTD + sent[layer, head], np.float64)[0, -1]
        x_D = x_D / np.sqrt(np.square(x_D).mean() + CFG.norm.epsilon) * scale
        np.testing.assert_allclose(found[layer, head], x_D @ (matrix_VD[3] - matrix_VD[5]), atol=1e-5)


def test_without_another_layer_and_feed_forward_the_direct_path_is_all_there_is():
    cfg = replace(CFG, layers=1)
    model = model_of(cfg)
    model.params["blocks"][0]["feedforward"] = jax.tree.map(jnp.zeros_like, model.params["blocks"][0]["feedforward"])
    whole = activation_patching(model, CLEAN, CORRUPT, METRIC, kind="z", positions=False, say=lambda _: None)
    np.testing.assert_allclose(quiet(model, CLEAN, CORRUPT, METRIC), whole, atol=1e-5)


@pytest.mark.parametrize("what", ["q", "v"])
def test_the_path_to_a_head_is_what_it_reads_from_the_stream(model, sent, what):
    """By hand: the layer reads a stream with what the sender adds; then that head alone reads it. With the feed-forward
    layers held the way is direct, so heads of the same layer or a later one tell it nothing."""
    receiver = Receiver(layer=1, head=1, what=what)
    found = quiet(model, CLEAN, CORRUPT, METRIC, receivers=[receiver], scaled=False)
    plain = METRIC(capture(model, CORRUPT, LOGITS)[LOGITS])
    np.testing.assert_allclose(found[1], plain, atol=1e-5)
    changes = []
    for head in range(CFG.heads):
        stream = {"blocks.1.hook_resid_pre": Patch(added=sent[0, head])}
        read = capture(model, CORRUPT, receiver.site, patches=stream)[receiver.site]
        only = np.arange(read.shape[2])[:, None] == receiver.head
        expected = METRIC(patch(model, CORRUPT, {receiver.site: Patch(read, only)}))
        np.testing.assert_allclose(found[0, head], expected, atol=1e-5)
        changes.append(abs(expected - plain))
    assert max(changes) > 1e-3


def test_feed_forward_layers_that_are_not_held_pass_on_what_they_read(model):
    """All that leads from layer 0 to the queries, keys and values of layer 1 is there then: the stream itself."""
    everything = [Receiver(1, head, "q") for head in range(CFG.heads)]
    everything += [Receiver(1, head, what) for head in range(CFG.kv_heads) for what in ("k", "v")]
    found = quiet(model, CLEAN, CORRUPT, METRIC, receivers=everything, held=(), scaled=False)
    z = capture(model, CLEAN, "blocks.0.attn.hook_z")["blocks.0.attn.hook_z"]
    sites = [f"blocks.1.attn.hook_{what}" for what in "qkv"]
    for head in range(CFG.heads):
        sender = {"blocks.0.attn.hook_z": Patch(z, np.arange(CFG.heads)[:, None] == head)}
        read = capture(model, CORRUPT, sites, patches=sender)
        np.testing.assert_allclose(found[0, head], METRIC(patch(model, CORRUPT, read)), atol=1e-5)
    held = quiet(model, CLEAN, CORRUPT, METRIC, receivers=everything, scaled=False)
    assert np.abs(held - found)[0].max() > 1e-3


def test_what_a_user_gets_wrong_is_one_line(model):
    with pytest.raises(UserError, match="a layer below 2, a head below 2, and what it reads"):
        quiet(model, CLEAN, CORRUPT, METRIC, receivers=[Receiver(1, 3, "k")])
    with pytest.raises(UserError, match="receivers is empty"):
        quiet(model, CLEAN, CORRUPT, METRIC, receivers=[])
    with pytest.raises(UserError, match=r"'blocks.\*.hook_mlp'"):
        quiet(model, CLEAN, CORRUPT, METRIC, held=("mlp",))
