"""Adapters beside PEFT: logits, training, and the way out and back."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import lmjax
from lmjax import optim, trained
from lmjax.experiment import Experiment
from lmjax.interop.peft import ENDS, TENSORS, export_adapter
from lmjax.loaded import load_model
from lmjax.models import lora
from lmjax.models.lora import LoRA
from lmjax.optim import AdamW, Constant
from lmjax.sharding import Mesh, build_mesh, place_batch
from lmjax.train import state as train_state
from lmjax.train.step import compile_step
from lmjax.trees import named_leaves, nested
from tests import tiny
from tests.parity.originals import make

EVERY = ("blocks/*/kernel",)
# family: weights that are adapted. The queries alone are a part of GPT-2's c_attn. Qwen's and Gemma's matrices lie as
# Llama's
CASES = {
    "gpt2": EVERY, "gpt2-queries": ("blocks/attention/q/kernel", "blocks/feedforward/up/kernel"),
    "gpt2_untied": ("blocks/attention/v/kernel", "unembedding"), "gpt_neox": EVERY, "llama": (*EVERY, "unembedding"),
    "mixtral": ("blocks/attention/*/kernel",),
}  # fmt: skip
OPTIMIZER = AdamW(b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.1, clip=None)
IDS = np.random.default_rng(3).integers(0, 97, (2, 64)).astype(np.int32)


def adapted(name, directory):
    """(experiment, the base's parameters, A and B that are not 0)."""
    original = directory / "base"
    make(name.split("-")[0], original)
    loaded = load_model(original)
    exp = Experiment(
        name="adapted", model=loaded.experiment.model, init_from=str(original), optimizer=OPTIMIZER, batch_size=2,
        schedule=Constant(peak=1e-2), adapter=LoRA(rank=4, alpha=6.0, weights=CASES[name]),
    )  # fmt: skip
    ours, _ = jax.jit(partial(trained.split, exp))(loaded.params)
    rng = np.random.default_rng(5)
    stirred = {
        path: 0.1 * rng.standard_normal(x.shape).astype(np.float32) if path.endswith(lora.B) else x
        for path, x in named_leaves(ours)
    }
    return exp, loaded.params, nested(stirred)


def theirs_of(exp, directory, **how):
    base = transformers.AutoModelForCausalLM.from_pretrained(exp.init_from, attn_implementation="eager")
    return peft.PeftModel.from_pretrained(base, directory, **how).eval()


def logits_of(model):
    with torch.no_grad():
        return model(torch.tensor(IDS.astype(np.int64))).logits.numpy()


def close(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("name", CASES)
def test_logits_of_the_exported_adapter_and_the_way_back(name, tmp_path):
    exp, params, ours = adapted(name, tmp_path)
    export_adapter(exp, ours, tmp_path / "adapter", exp.init_from)
    model = lmjax.LanguageModel(exp.model, jax.jit(partial(trained.whole, exp))(ours, params), None, tmp_path)
    expected, plain = logits_of(theirs_of(exp, tmp_path / "adapter")), lmjax.load(exp.init_from)(IDS).logits
    assert not close(plain, expected)
    assert close(model(IDS).logits, expected)
    assert close(lmjax.load(tmp_path / "adapter")(IDS).logits, expected)


@pytest.mark.parametrize("slow", [False, True], ids=["plain", "rank_stabilised"])
def test_an_adapter_that_peft_made_is_read(slow, tmp_path):
    """Of c_attn, one A for queries, keys and values; another alpha for one module."""
    make("gpt2", tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True, use_rslora=slow,
        alpha_pattern={"mlp.c_proj": 9}, rank_pattern={"mlp.c_proj": 2},
    )  # fmt: skip
    model = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if "lora_B" in path:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "adapter")
    assert close(lmjax.load(tmp_path / "adapter")(IDS).logits, logits_of(model))


# modules of which each is one weight of ours: another split of A and B would be trained otherwise
@pytest.mark.parametrize(
    ("name", "weights"),
    [("llama", CASES["llama"]), ("gpt2", ("blocks/attention/out/kernel", "blocks/feedforward/*/kernel"))],
)
def test_training_gives_the_same_a_and_b(name, weights, tmp_path):
    exp, params, ours = adapted(name, tmp_path)
    if weights != CASES[name]:
        exp = replace(exp, adapter=replace(exp.adapter, weights=weights))
        which = trained.parts(exp).adapted
        ours = nested({path: x for path, x in named_leaves(ours) if path.rsplit("/", 1)[0] in which})
    export_adapter(exp, ours, tmp_path / "before", exp.init_from)
    theirs = theirs_of(exp, tmp_path / "before", is_trainable=True)
    tokens = torch.tensor(IDS.astype(np.int64))
    kind = {"lr": 1e-2, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}
    torch_optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], **kind)
    for _ in range(5):
        torch_optimizer.zero_grad()
        theirs(tokens, labels=tokens).loss.backward()
        torch_optimizer.step()

    optimizer = optim.transform(exp.optimizer, exp.schedule, exp.steps)
    batch = tiny.batch(replace(exp.model, context=IDS.shape[1] - 1), 2)
    batch = replace(batch, tokens_BT=IDS[:, :-1], targets_BT=IDS[:, 1:])
    mesh = build_mesh(Mesh(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        state, frozen = jax.jit(lambda p: train_state.begun(exp, optimizer, p))(params)
        state, step = replace(state, params=ours), compile_step(exp, optimizer, mesh)
        for _ in range(5):
            state, _ = step(state, frozen, place_batch(batch, mesh))
    export_adapter(exp, jax.device_get(state.params), tmp_path / "after", exp.init_from)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    files = [load_file(tmp_path / folder / TENSORS) for folder in ("before", "after", "theirs")]
    assert files[1].keys() == files[2].keys()
    for path, (before, mine, expected) in {path: [f[path] for f in files] for path in files[1]}.items():
        assert path.endswith(ENDS)
        assert np.abs(before - expected).max() > 0.01
        assert np.abs(mine - expected).max() < 1e-4, path
