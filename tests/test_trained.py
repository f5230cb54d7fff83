"""What is trained and what is frozen: patterns, their mistakes, and that nothing is lost on the way."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import experiment as experiments
from lmjax import trained
from lmjax.errors import UserError
from lmjax.models import lora
from lmjax.models.lora import LoRA
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.trees import count, named_leaves
from tests import tiny

BASE = tiny.experiment("unused", model=tiny.gpt2(), init_from="base")


def paths(tree):
    return {path for path, _ in named_leaves(tree)}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"freeze": ("embedding", "blocks/attention/*")},
        {"adapter": LoRA(rank=2, weights=("blocks/*/kernel", "embedding"), train=("*/scale",))},
    ],
    ids=["all", "freeze", "adapter"],
)
def test_the_parts_make_the_whole_again(changes):
    """Bit for bit: A B is 0 at the start."""
    exp = replace(BASE, **changes)
    params = tiny.params(exp.model)
    ours, frozen = trained.split(exp, params)
    for (path, x), (other, y) in zip(named_leaves(params), named_leaves(trained.whole(exp, ours, frozen)), strict=True):
        assert path == other
        np.testing.assert_array_equal(x, y)
    assert not paths(ours) & paths(frozen)


def test_freezing_and_adapting_say_what_is_trained():
    params = tiny.params(BASE.model)
    ours, frozen = trained.split(replace(BASE, freeze=("embedding", "*/scale")), params)
    assert paths(frozen) == {path for path in paths(params) if path == "embedding" or path.endswith("/scale")}
    exp = replace(BASE, adapter=LoRA(rank=2, train=("final_norm/*",)))
    ours, frozen = trained.split(exp, params)
    norm = {"final_norm/bias", "final_norm/scale"}
    factors = {f"blocks/attention/{part}/kernel/lora_{x}" for part in "qv" for x in "ab"}
    assert paths(ours) == norm | factors
    assert paths(frozen) == paths(params) - norm
    # 2 layers of width 32: two matrices, each with an A and a B
    assert count(ours) == 2 * 2 * 2 * 2 * 32 + 2 * 32
    (line,) = trained.told(exp, ours)
    assert line == f"trained 576 parameters, 1.95% of the model's {count(params):,} (LoRA of rank 2 on 2 weights)"
    assert trained.told(BASE, params) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ("blocks/atention/q/kernel",)}, r"^freeze: 'blocks/atention/q/kernel' fits no parameter; the nearest are blocks/attention/q/kernel, "),
        ({"freeze": ("*",)}, r"^freeze: \* leaves no parameter to train$"),
        ({"adapter": LoRA(weights=("blocks/*/bias",))}, r"^adapter.weights: blocks/attention/k/bias is no matrix; adapter.train trains it as it is$"),
        ({"adapter": LoRA(train=("head/*",))}, r"^adapter.train: 'head/\*' fits no parameter"),
        ({"adapter": LoRA(train=("blocks/attention/*",))}, r"^adapter: blocks/attention/q/kernel is in weights and in train; expected one of them$"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        trained.parts(replace(BASE, **changes))


def test_an_adapter_needs_a_model_and_freezes_by_itself():
    with pytest.raises(ValueError, match="adapter needs init_from"):
        replace(BASE, adapter=LoRA(), init_from=None)
    with pytest.raises(ValueError, match="adapter.train says what is not"):
        replace(BASE, adapter=LoRA(), freeze=("embedding",))
    with pytest.raises(ValueError, match="rank is 0"):
        LoRA(rank=0)


def test_in_training_all_blocks_are_summed_up_in_their_loops():
    """Those of an encoder too: no sum of all layers is there at one time, and what comes out is the same."""
    cfg, tokens = tiny.t5(), jnp.arange(20).reshape(2, 10)
    exp = replace(BASE, model=cfg, task=Seq2Seq(), adapter=LoRA(rank=2, weights=("*blocks/*/kernel", "embedding")))
    params = tiny.params(cfg, 1)
    ours, frozen = trained.split(exp, params)
    ours = jax.tree.map(lambda x: x + 0.1, ours)
    merged, apart = trained.whole(exp, ours, frozen), trained.whole(exp, ours, frozen, in_training=True)
    leaves = jax.tree_util.tree_leaves_with_path(apart, is_leaf=lora.is_adapted)
    assert all(lora.is_adapted(x) == ("blocks" in str(path) and "kernel" in str(path)) for path, x in leaves)
    one, other = (tiny.encode(cfg, p, tokens, tokens % 10, jnp.ones_like(tokens)) for p in (merged, apart))
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_patterns_on_the_command_line_need_no_quotes(tmp_path):
    (tmp_path / "one.py").write_text(
        "from lmjax import Experiment, ModelConfig\n"
        "experiment = Experiment(name='one', model=ModelConfig(layers=1, width=16, heads=2, context=16), init_from='base')\n"
    )
    load = lambda *words: experiments.load(str(tmp_path / "one.py"), list(words))
    assert load("freeze=embedding,blocks/attention/*").freeze == ("embedding", "blocks/attention/*")
    assert load("freeze=embedding").freeze == load("freeze=['embedding']").freeze == ("embedding",)
    assert load("adapter=LoRA", "adapter.rank=3", "adapter.train=*/scale").adapter == LoRA(rank=3, train=("*/scale",))
    assert load("adapter=LoRA", "adapter=None").adapter is None
