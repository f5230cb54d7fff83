"""Every family beside transformers' own implementation: logits, loss, gradients, generation, and the way back."""

import json
import re
import shutil
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
import torch
import transformers

import lmjax
from lmjax import trees
from lmjax.data.batch import Batch
from lmjax.interop.mapping import expand
from lmjax.interop.original import original_activations
from lmjax.interop.read import load_params, open_checkpoint
from lmjax.interop.verify import activations, compare
from lmjax.interop.write import export
from lmjax.models import transformer
from lmjax.tasks.causal_lm import CausalLM
from tests import tiny
from tests.interop.directories import gpt2_tokenizer_files
from tests.parity.originals import MODELS, T5_MODELS, T, make


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """(name, directory, the original, ids, the original's logits)."""
    directory = tmp_path_factory.mktemp(request.param) / "original"
    model = make(request.param, directory)
    ids = np.random.default_rng(3).integers(0, 97, (2, T)).astype(np.int32)
    return request.param, directory, model, ids, logits_of(model, ids)


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor(ids.astype(np.int64))).logits.numpy()


def logits_of_ours(directory, ids):
    """By one program in which the layers are a loop, which compiles in a part of the time that those of lmjax.load do."""
    found = open_checkpoint(directory)
    cfg, positions_BT = found.cfg, np.broadcast_to(np.arange(ids.shape[1]), ids.shape)

    @jax.jit
    def run(params):
        hidden_BTD, _ = transformer.hidden(cfg, params, ids, positions_BT)
        return transformer.masked_logits(cfg, params, hidden_BTD)

    return np.asarray(run(load_params(found, stacked=True)))


def bound(logits):
    return 1e-4 * max(1.0, np.abs(logits).max())


def test_logits_and_loss(pair):
    _, directory, model, ids, theirs = pair
    out = lmjax.load(directory)(ids)
    assert np.abs(theirs).max() > 10
    assert np.abs(np.asarray(out.logits) - theirs).max() < bound(theirs)
    long_ids = torch.tensor(ids.astype(np.int64))
    with torch.no_grad():
        assert out.loss == pytest.approx(model(long_ids, labels=long_ids).loss.item(), abs=1e-5)


def test_every_field_counts(pair, tmp_path):
    """A config.json in which one field says something else gives other logits, ten times further than the bound."""
    name, directory, _, ids, theirs = pair
    shutil.copytree(directory, tmp_path / "changed")
    config = json.loads((directory / "config.json").read_text())
    for field, value in MODELS[name][2].items():
        changed = json.loads(json.dumps(config))
        *path, last = field.split(".")
        place = changed
        for part in path:
            place = place[part]
        assert place.get(last) != value, field
        place[last] = value
        if field in ("sliding_window", "max_window_layers", "use_sliding_window"):
            changed.pop("layer_types", None)
        (tmp_path / "changed" / "config.json").write_text(json.dumps(changed))
        ours = logits_of_ours(tmp_path / "changed", ids)
        assert np.abs(ours - theirs).max() > 10 * bound(theirs), field


def test_gradients(pair):
    _, directory, model, ids, _ = pair
    model.zero_grad()
    long_ids = torch.tensor(ids.astype(np.int64))
    model(long_ids, labels=long_ids).loss.backward()
    found = open_checkpoint(directory)
    params = load_params(found, stacked=True)
    B, S = ids.shape
    batch = Batch(ids[:, :-1], np.tile(np.arange(S - 1), (B, 1)), None, ids[:, 1:], np.ones((B, S - 1), np.float32))
    loss = lambda params: CausalLM().held_out_loss(found.cfg, params, batch).mean()
    ours = dict(trees.named_leaves(jax.jit(jax.grad(loss))(params)))
    theirs = {
        found.family.canonical(path): p.grad.numpy() for path, p in model.named_parameters() if p.grad is not None
    }
    if "lm_head.weight" in theirs:
        theirs[found.family.head] = theirs["lm_head.weight"]
    compared = 0
    for entry in found.family.all_entries(found.cfg):
        for place, name in expand(entry, found.cfg):
            if name in theirs:
                expected = found.sizes.view(theirs[name], entry)
                got = np.asarray(ours[entry.ours][place])
                assert np.abs(got - expected).max() <= 1e-4 * max(np.abs(expected).max(), 1e-3), (entry.ours, place)
                compared += 1
    assert compared >= 6 * found.cfg.layers


def test_greedy_generation_token_by_token(pair):
    _, directory, model, ids, _ = pair
    prompt = torch.tensor(ids[:, :40].astype(np.int64))
    theirs = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=60,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    ours = lmjax.load(directory).generate(ids[:, :40], max_new_tokens=60)
    for mine, other in zip(ours, theirs.numpy(), strict=True):
        assert mine.tolist() == other.tolist()


def test_exported_and_loaded_by_transformers(pair, tmp_path):
    name, directory, _, ids, theirs = pair
    found = open_checkpoint(directory)
    params = load_params(found, stacked=True)
    export(found.cfg, params, None, tmp_path / "out", shard_limit=20_000)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert np.abs(logits_of(again.eval(), ids) - theirs).max() < bound(theirs)
    back = open_checkpoint(tmp_path / "out")
    assert (
        back.family.model_type == json.loads((directory / "config.json").read_text())["model_type"] or "mistral" in name
    )
    for (path, a), (_, b) in zip(trees.named_leaves(params), trees.named_leaves(load_params(back, stacked=True))):
        np.testing.assert_array_equal(a, b, err_msg=path)


def test_every_site_of_the_original(pair):
    """Sites are compared with the original's modules, and a spoilt tensor in ours is found at its own."""
    name, directory, _, ids, _ = pair
    found = open_checkpoint(directory)
    params = load_params(found, stacked=True)
    theirs = original_activations(directory, ids[:1])
    report = compare(theirs, activations(found.cfg, params, ids[:1]), 1e-4)
    assert report.parting is None
    assert len(report.sites) >= 5 * found.cfg.layers + 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files_are_widened_exactly(dtype, tmp_path):
    model = make("llama", tmp_path / "original")
    half = model.to(getattr(torch, dtype))
    half.save_pretrained(tmp_path / "half")
    params = load_params(open_checkpoint(tmp_path / "half"), stacked=False)
    expected = half.state_dict()["model.layers.1.mlp.down_proj.weight"].float().numpy().T
    np.testing.assert_array_equal(params["blocks"][1]["feedforward"]["down"]["kernel"], expected)


def test_the_example_of_the_readme(tmp_path):
    """Load GPT-2, give it a sentence, get loss and logits: the lines of the README, in a process, as transformers."""
    directory, text = tmp_path / "path" / "to" / "gpt2", "Hello, my dog is cute"
    model = make("gpt2", directory, changes={"vocab_size": 300})
    gpt2_tokenizer_files(directory)
    readme = (tiny.ROOT / "README.md").read_text()
    (block,) = re.findall(r'((?:    .*\n)*    model = lmjax.load\("path/to/gpt2"\)\n(?:    .*\n)*)', readme)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(block)], cwd=tmp_path, capture_output=True, text=True, check=True,
        env=tiny.environment_of_a_process(),
    )  # fmt: skip
    first, score, written = done.stdout.split("\n", 2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    theirs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        expected = model(**theirs, labels=theirs["input_ids"])
    loss, rest = first.split(" ", 1)
    assert float(loss) == pytest.approx(expected.loss.item(), abs=1e-5)
    assert rest == f"{tuple(expected.logits.shape)} {theirs['input_ids'].tolist()}"
    assert float(score) == pytest.approx(-expected.loss.item() * (theirs["input_ids"].shape[1] - 1), rel=1e-5)
    prompt = tokenizer(text.removesuffix(" is cute"), return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert written == tokenizer.decode(ids[0], skip_special_tokens=True) + "\n"
    logits = np.asarray(lmjax.load(directory)(text).logits)
    assert np.abs(logits - expected.logits.numpy()).max() < bound(expected.logits.numpy())


@pytest.mark.parametrize("name", MODELS | T5_MODELS)
def test_the_golden_files_are_current(name, tmp_path):
    from tests.interop import golden
    from tests.parity.write_golden import golden_of

    kept, now = json.loads((golden.FOLDER / f"{name}.json").read_text()), golden_of(name, tmp_path)
    for part in ("config", "tensors"):
        assert {**kept[part], "transformers_version": ""} == {**now[part], "transformers_version": ""}
    np.testing.assert_allclose(kept["logits"], now["logits"], atol=2e-5 * np.abs(now["logits"]).max())
