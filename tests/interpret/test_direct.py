"""What the components give adds up, to the residual stream and to a logit, whatever way a block is put together."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.interpret.capture import LOGITS, Read, capture
from lmjax.interpret.direct import components, direct_attribution
from lmjax.models.norms import LayerNorm
from tests import tiny
from tests.interpret.small import model_of
from tests.interpret.test_capture import CONFIGS, ids, sourced

# of those there, what has biases everywhere, labels, and output divided by sqrt(width)
MORE = {
    "biased sandwich": replace(CONFIGS["gemma"], norm=LayerNorm(), bias=True, scaled_output=True),
    "encoder of labels": tiny.bert(masked_head=None, outputs=3),
    "decoder of labels": tiny.gpt2(outputs=3, layers=1),
}


@pytest.mark.parametrize("name", [*CONFIGS, *MORE])
def test_components_add_up_to_the_stream_and_to_the_logit(name):
    cfg = (CONFIGS | MORE)[name]
    cfg = replace(cfg, layers=min(2, cfg.layers), encoder_layers=min(1, cfg.encoder_layers))
    model, rows = model_of(cfg), sourced(cfg)
    last = f"blocks.{cfg.layers - 1}.hook_resid_post"
    found = jax.device_get(capture(model, rows, [last, LOGITS]))
    names, stack_CBTD = components(model, rows)
    assert len(set(names)) == len(names) == len(stack_CBTD)
    np.testing.assert_allclose(stack_CBTD.sum(0), found[last], atol=1e-5)
    of_logit = found[LOGITS][1, 7].astype(np.float64)
    if cfg.logit_cap:
        of_logit = cfg.logit_cap * np.arctanh(of_logit / cfg.logit_cap)
    one = direct_attribution(model, rows, target=1, position=7, row=1)
    both = direct_attribution(model, rows, target=1, against=2, position=-5, row=1)
    assert one.position == both.position == 7 and one.names[: len(names)] == names
    for told, expected in ((one, of_logit[1]), (both, of_logit[1] - of_logit[2])):
        np.testing.assert_allclose([told.values.sum(), told.total], expected, atol=1e-4)
        assert abs(told.error) < 1e-4


def test_a_components_share_is_what_the_logit_loses_without_it_where_nothing_comes_behind():
    """The last layer's feed-forward layer, with no norm of another spread: a step so small that the norm stays."""
    cfg = CONFIGS["llama"]
    model, rows = model_of(cfg), sourced(cfg)
    told = direct_attribution(model, rows, target=3, position=5)
    names, stack_CBTD = components(model, rows)
    stream_D, norm = np.asarray(stack_CBTD, np.float64).sum(0)[0, 5], model.params["final_norm"]["scale"]
    column_D = np.asarray(model.params["unembedding"][3], np.float64)
    spread = 1 / np.sqrt((stream_D**2).mean() + cfg.norm.epsilon)
    expected = (np.asarray(stack_CBTD[:, 0, 5], np.float64) * spread * norm) @ column_D
    np.testing.assert_allclose(told.values, expected, atol=1e-5)
    assert told.largest(1)[0][0] == names[np.abs(expected).argmax()]


def test_a_head_writes_what_its_own_output_weights_make_of_it():
    cfg = CONFIGS["t5"]
    model, rows = model_of(cfg), sourced(cfg)
    names, stack_CBTD = components(model, rows)
    z = capture(model, rows, ["blocks.1.attn.hook_z", "blocks.1.cross_attn.hook_z"])
    for site, module, name in (("attn", "attention", "L1H2"), ("cross_attn", "cross_attention", "L1 cross H2")):
        kernel_HD = model.params["blocks"][1][module]["out"]["kernel"][2]
        expected = np.einsum("BTH,HD->BTD", z[f"blocks.1.{site}.hook_z"][:, :, 2], kernel_HD)
        np.testing.assert_allclose(stack_CBTD[names.index(name)], expected, atol=1e-5)


def test_layers_that_are_stacked_give_the_same():
    cfg = CONFIGS["gpt2"]
    apart, stacked = (components(model_of(cfg, apart=apart), sourced(cfg)) for apart in (True, False))
    assert apart[0] == stacked[0]
    np.testing.assert_allclose(apart[1], stacked[1], atol=1e-5)


def test_what_a_user_gets_wrong_is_one_line():
    model, bert = model_of(CONFIGS["gpt2"]), model_of(CONFIGS["bert"])
    tokens = ids(model.cfg)
    rows = Read(tokens, np.array([12, 7]))
    with pytest.raises(UserError, match="position 7: expected -7 to 6, the text's tokens"):
        direct_attribution(model, rows, target=1, row=1, position=7)
    with pytest.raises(UserError, match="row 2: expected 0 to 1, the texts"):
        direct_attribution(model, rows, target=1, row=2)
    with pytest.raises(UserError, match="target 97: expected 0 to 96"):
        direct_attribution(model, tokens, target=97)
    with pytest.raises(UserError, match="m has no tokenizer; expected a token's id"):
        direct_attribution(model, tokens, target=" a")
    with pytest.raises(UserError, match="m fills in places of a text; expected a position"):
        direct_attribution(bert, tokens, target=1)
    packed = SimpleNamespace(**vars(model) | {"params": model.params | {"packed_unembedding": jnp.zeros(1)}})
    with pytest.raises(UserError, match="its weights are packed; expected weights of float32"):
        components(packed, tokens)
    labels = SimpleNamespace(**vars(model_of(MORE["decoder of labels"])), labels=("no", "yes", "maybe"))
    assert direct_attribution(labels, tokens, target="maybe").target == 2
    with pytest.raises(UserError, match="'never': expected a label, one of no, yes, maybe"):
        direct_attribution(labels, tokens, target="never")
