"""Checkpoint directories: what every version of transformers wrote is read, what does not fit is named, and the way out
and in again keeps every bit."""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import lmjax
from lmjax import trees
from lmjax.errors import Notice, UserError
from lmjax.interop import mapping
from lmjax.interop.families import family_for
from lmjax.interop.family import normal
from lmjax.interop.read import load_params, open_checkpoint
from lmjax.interop.tensor_files import open_tensors, write_tensors
from lmjax.interop.verify import activations, compare, random_tokens
from lmjax.interop.write import export
from lmjax.models import transformer
from lmjax.models.positions import Llama3, Rotary, Stretched, Yarn
from lmjax.sharding import Mesh, build_mesh
from tests import tiny
from tests.interop.directories import CONFIGS, LLAMA, WIDENED, change_config, params_of, write


def rewrite(directory, change):
    """The tensors of a directory, written again after `change` has had the dict of them."""
    arrays = {name: np.array(tensor.view()) for name, tensor in open_tensors(directory).items()}
    change(arrays)
    write_tensors(directory, [(name, x.dtype, x.shape, lambda x=x: x) for name, x in arrays.items()], 10**9)


def assert_same(one, other):
    for (path, a), (_, b) in zip(trees.named_leaves(one), trees.named_leaves(other), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("limit", [10**9, 9_000])
def test_exported_and_imported_bit_by_bit(name, limit, tmp_path):
    params = write(name, tmp_path / "out", shard_limit=limit)
    found = open_checkpoint(tmp_path / "out")
    assert found.family.model_type == name
    assert_same(load_params(found, stacked=True), params)
    assert_same(load_params(found, stacked=False), transformer.apart(params))
    assert family_for(found.cfg)[0].model_type == name


@pytest.mark.parametrize("name", WIDENED)
def test_what_no_family_has_is_written_as_what_computes_the_same(name, tmp_path):
    params, cfg = write(name, tmp_path / "out"), WIDENED[name]
    found = open_checkpoint(tmp_path / "out")
    ids = random_tokens(cfg.vocab, cfg.context)
    ours = activations(cfg, params, ids)
    report = compare(ours, activations(found.cfg, load_params(found, stacked=True), ids), 1e-6)
    assert report.parting is None or report.parting.name.endswith("hook_pre_linear")
    assert report.sites[-1].name == "logits"


def test_what_only_trains_experts_is_no_other_model(tmp_path):
    """A run with a capacity is written as what decodes the same, and may start from what was read."""
    ours = CONFIGS["mixtral"]
    trained = replace(ours, feedforward=replace(ours.feedforward, balance=0.5, router_z_loss=0.0, capacity=1.25))
    export(trained, params_of(trained), None, tmp_path / "hf")
    assert normal(open_checkpoint(tmp_path / "hf").cfg) == normal(trained) == normal(ours)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (tiny.gpt2(positions=Rotary(fraction=0.5), qk_norm=True), "qk_norm: True -> False"),
        (tiny.gpt2(score_scale=2.0), "score_scale: 2.0 -> "),
        (replace(CONFIGS["gemma2"], score_scale=0.3), "score_scale: 0.3 -> "),
    ],
)
def test_a_model_that_no_family_says_is_refused_with_the_nearest(cfg, message):
    with pytest.raises(
        UserError, match=f"no Hugging Face architecture says this model; .*, the nearest, differs in: .*{message}"
    ):
        family_for(cfg)


def test_a_missing_tensor_is_told_before_all_names_are_made(monkeypatch):
    """A file of 300 bytes may ask for a million of them."""
    made, expand = [], mapping.expand
    monkeypatch.setattr(mapping, "expand", lambda *entry: (made.append(name) or name for name in expand(*entry)))
    cfg = tiny.mixtral(layers=1000)
    cfg = replace(cfg, feedforward=replace(cfg.feedforward, count=1000))
    with pytest.raises(UserError, match="here: embed_tokens.weight is missing"):
        mapping.check_names({}, family_for(CONFIGS["mixtral"])[0].all_entries(cfg), cfg, mapping.sizes(cfg, 97), "here")
    assert len(made) == 1


def test_windows_of_qwen_have_a_size_where_nothing_is_said(tmp_path):
    write("qwen2", tmp_path / "out")
    change_config(tmp_path / "out", {"use_sliding_window": True}, without=("sliding_window",))
    windows = [span.window for span in open_checkpoint(tmp_path / "out").cfg.pattern]
    assert windows == [None, 4096, 4096]
    change_config(tmp_path / "out", {"sliding_window": None})
    assert [span.window for span in open_checkpoint(tmp_path / "out").cfg.pattern] == [None]


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_onto_any_mesh(name, tmp_path):
    params = write(name, tmp_path / "out")
    for mesh in (Mesh(fsdp=2, tensor=2, data=2), Mesh(fsdp=4, tensor=2)):
        loaded = load_params(open_checkpoint(tmp_path / "out"), stacked=True, mesh=build_mesh(mesh))
        assert_same(loaded, params)
        kernel = loaded["blocks"]["attention"]["q"]["kernel"]
        assert kernel.addressable_shards[0].data.size == kernel.size // (mesh.fsdp * mesh.tensor)


def test_a_vocabulary_filled_up_is_stripped_on_the_way_out_and_filled_up_on_the_way_in(tmp_path):
    from lmjax.tokenizers import Bytes

    cfg = replace(LLAMA, vocab=320)
    params = params_of(cfg)
    export(cfg, params, Bytes().build(list), tmp_path / "out")
    found = open_checkpoint(tmp_path / "out")
    assert found.cfg.vocab == 258 and found.tensors["lm_head.weight"].shape == (258, cfg.width)
    again = load_params(found, stacked=True, vocab=320)
    np.testing.assert_array_equal(again["embedding"][:258], params["embedding"][:258])
    np.testing.assert_array_equal(again["unembedding"][258:], np.zeros((62, cfg.width)))


SITES = {
    "attention_norm/scale": "ln1.hook_normalized", "q/kernel": "attn.hook_q", "k/kernel": "attn.hook_k",
    "v/kernel": "attn.hook_v", "q_norm/scale": "attn.q_norm.hook_normalized", "k_norm/scale": "attn.k_norm.hook_normalized",
    "q/bias": "attn.hook_q", "k/bias": "attn.hook_k", "v/bias": "attn.hook_v", "out/kernel": "hook_attn_out",
    "out/bias": "hook_attn_out", "attention_post_norm/scale": "hook_attn_out", "attention_norm/bias": "ln1.hook_normalized",
    "feedforward_norm/scale": "ln2.hook_normalized", "feedforward_norm/bias": "ln2.hook_normalized",
    "feedforward_post_norm/scale": "hook_mlp_out", "gate/kernel": "mlp.hook_pre", "up/bias": "mlp.hook_pre",
    "down/kernel": "hook_mlp_out", "down/bias": "hook_mlp_out", "feedforward/router": "mlp.hook_router",
    "feedforward/gate": "hook_mlp_out", "feedforward/up": "hook_mlp_out", "feedforward/down": "hook_mlp_out",
}  # fmt: skip

# where what is added to the residual stream is normalised first
AFTER = {"out/kernel": "ln1_post", "attention_post_norm/scale": "ln1_post", "down/kernel": "ln2_post"}
AFTER |= {"feedforward_post_norm/scale": "ln2_post"}
SITES |= {site: f"{site}.hook_normalized" for site in AFTER.values()}


# every kind of tensor is in one of these: a Llama's and a Mistral's are in Qwen 2, a Qwen 3's and a Gemma 2's in Gemma 3
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "mixtral", "qwen2", "gemma3_text"])
def test_a_spoilt_tensor_of_the_middle_layer_is_found_at_its_site(name):
    """Each tensor of layer 1 of 3, by a few parts in a hundred."""

    def noisy(x):
        x = np.array(x)
        x[1] += 0.05 * np.abs(x[1]).mean() * np.random.default_rng(2).standard_normal(x[1].shape)
        return x

    cfg = replace(CONFIGS[name], context=512)
    params = params_of(cfg)
    ids = random_tokens(cfg.vocab, 512)
    whole = activations(cfg, params, ids)
    gated = "gate" in params["blocks"]["feedforward"]
    for path, leaf in trees.named_leaves(params["blocks"]):
        spoilt = trees.map_named(lambda p, x: noisy(x) if p == path else x, params["blocks"])
        parting = compare(whole, activations(cfg, params | {"blocks": spoilt}, ids), 1e-4).parting
        kind = "/".join(path.split("/")[-2:])
        if CONFIGS[name].post_norms and kind in AFTER:
            kind = AFTER[kind]
        site = "mlp.hook_pre_linear" if gated and kind == "up/kernel" else SITES.get(kind, "mlp.hook_pre")
        assert parting.name == f"blocks.1.{site}", path
        assert leaf.shape[0] == cfg.layers


def test_missing_extra_misshapen_and_doubled_tensors_are_named(tmp_path):
    write("gpt2", tmp_path / "out")
    out, name = tmp_path / "out", "transformer.h.1.mlp.c_fc.weight"

    def fails(change, message):
        kept = (out / "model.safetensors").read_bytes()
        rewrite(out, change)
        with pytest.raises(UserError, match=message):
            open_checkpoint(out)
        (out / "model.safetensors").write_bytes(kept)

    fails(lambda x: x.pop(name), "h.1.mlp.c_fc.weight is missing")
    fails(
        lambda x: x.update({"transformer.h.1.new.weight": np.zeros(3, np.float32)}), "h.1.new.weight belongs to no part"
    )
    fails(
        lambda x: x.update({"transformer.h.7.ln_1.bias": np.zeros(32, np.float32)}), "h.7.ln_1.bias belongs to no part"
    )
    fails(lambda x: x.update({name: x[name].T.copy()}), r"h.1.mlp.c_fc.weight has the shape \(128, 32\)")
    fails(lambda x: x.update({name.removeprefix("transformer."): x[name]}), "are the same tensor")
    fails(lambda x: x.update({name: x[name].astype(np.int32)}), "is int32; expected float32, float16 or bfloat16")


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2_with_and_without_its_prefix_and_with_its_masks(prefix, tmp_path):
    params = write("gpt2", tmp_path / "out")

    def old(arrays):
        renamed = {prefix + name.removeprefix("transformer."): x for name, x in arrays.items()}
        for i in range(3):
            renamed[f"{prefix}h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 32, 32), np.uint8))
            renamed[f"{prefix}h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
        arrays.clear()
        arrays.update(renamed)

    rewrite(tmp_path / "out", old)
    # the first configurations had neither model_type nor n_inner
    change_config(tmp_path / "out", {"n_ctx": 32}, without=("model_type", "n_inner", "n_positions", "torch_dtype"))
    assert_same(load_params(open_checkpoint(tmp_path / "out"), stacked=True), params)


def test_llama_with_inverse_frequencies_and_gpt_neox_with_its_buffers(tmp_path):
    params = write("llama", tmp_path / "llama")
    rewrite(
        tmp_path / "llama", lambda x: x.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(6, np.float32)})
    )
    assert_same(load_params(open_checkpoint(tmp_path / "llama"), stacked=True), params)
    params = write("gpt_neox", tmp_path / "neox")
    buffers = {
        f"gpt_neox.layers.{i}.attention.{n}": np.ones(1, np.float32)
        for i in range(3)
        for n in ("bias", "masked_bias", "rotary_emb.inv_freq")
    }
    rewrite(tmp_path / "neox", lambda x: x.update(buffers))
    assert_same(load_params(open_checkpoint(tmp_path / "neox"), stacked=True), params)


@pytest.mark.parametrize("form", ["language_model.model.", "model.language_model."])
def test_gemma_3_inside_a_model_that_sees(form, tmp_path):
    params = write("gemma3_text", tmp_path / "out")

    def nest(arrays):
        renamed = {form + name.removeprefix("model."): x for name, x in arrays.items()}
        renamed["vision_tower.encoder.weight"] = renamed["model.multi_modal_projector.w"] = np.ones(2, np.float32)
        arrays.clear()
        arrays.update(renamed)

    rewrite(tmp_path / "out", nest)
    inner = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": inner, "vision_config": {}})
    )
    found = open_checkpoint(tmp_path / "out")
    assert found.cfg == open_checkpoint_like(found.cfg)
    assert_same(load_params(found, stacked=True), params)


def open_checkpoint_like(cfg):
    """What the configuration that was written says."""
    written = CONFIGS["gemma3_text"]
    return replace(cfg, pattern=written.pattern, positions=written.positions, logit_cap=written.logit_cap)


LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0, "original_max_position_embeddings": 16}
ROPES = [
    ({"rope_theta": 77.0}, Rotary(theta=77.0)),
    ({}, Rotary()),
    ({"rope_theta": 77.0, "rope_scaling": None}, Rotary(theta=77.0)),
    ({"rope_theta": 77.0, "rope_scaling": {"type": "linear", "factor": 3.0}}, Rotary(theta=77.0, stretch=Stretched(factor=3.0))),
    ({"rope_theta": 77.0, "rope_scaling": {"rope_type": "linear", "factor": 3}}, Rotary(theta=77.0, stretch=Stretched(factor=3.0))),
    ({"rope_scaling": {"type": "dynamic", "factor": 3.0}}, Rotary()),
    ({"rope_theta": 77.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}, Rotary(theta=77.0, stretch=Llama3(factor=4.0, low=1.0, high=3.0, original=16))),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 77.0, **LLAMA3}}, Rotary(theta=77.0, stretch=Llama3(factor=4.0, low=1.0, high=3.0, original=16))),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 77}}, Rotary(theta=77.0)),
    ({"rope_parameters": {"type": "linear", "factor": 2.0, "rope_theta": 77.0}}, Rotary(theta=77.0, stretch=Stretched(factor=2.0))),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}}, Rotary(stretch=Yarn(factor=4.0, original=8))),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "expected"), ROPES)
def test_every_way_in_which_rotary_positions_were_written(fields, expected, tmp_path):
    write("llama", tmp_path / "out")
    change_config(tmp_path / "out", fields, without=("rope_theta", "rope_scaling", "rope_parameters"))
    assert open_checkpoint(tmp_path / "out").cfg.positions == expected


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
def test_the_dtype_that_a_configuration_names_changes_nothing(name, tmp_path):
    params = write("llama", tmp_path / "out")
    change_config(tmp_path / "out", {name: "bfloat16"}, without=("torch_dtype",))
    assert_same(load_params(open_checkpoint(tmp_path / "out"), stacked=True), params)


def test_all_four_cases_of_the_output_embedding(tmp_path, capsys):
    params = write("llama", tmp_path / "out")
    out = tmp_path / "out"
    assert not open_checkpoint(out).cfg.tied  # untied, with a head
    change_config(out, {"tie_word_embeddings": True})
    found = open_checkpoint(out)  # tied, with another head: the file wins, and it is said
    assert not found.cfg.tied and "differs" in found.notes[0]
    np.testing.assert_array_equal(load_params(found, stacked=True)["unembedding"], params["unembedding"])
    rewrite(out, lambda x: x.update({"lm_head.weight": x["model.embed_tokens.weight"]}))
    assert open_checkpoint(out).cfg.tied and not open_checkpoint(out).notes  # tied, the same matrix twice
    rewrite(out, lambda x: x.pop("lm_head.weight"))
    assert open_checkpoint(out).cfg.tied  # tied, without a head
    change_config(out, {"tie_word_embeddings": False})
    with pytest.raises(UserError, match="lm_head.weight is missing"):  # untied, without a head
        open_checkpoint(out)


BAD = {
    "a missing width": ({}, ("hidden_size",), "hidden_size is None; expected a positive whole number"),
    "a width of text": ({"hidden_size": "32"}, (), "hidden_size is '32'; expected a positive whole number"),
    "a trillion layers": ({"num_hidden_layers": 10**12}, (), "num_hidden_layers is 1000000000000; expected"),
    "a million layers": ({"num_hidden_layers": 10**6}, (), "num_hidden_layers is 1000000; expected a whole number from 1 to 1000"),
    "true layers": ({"num_hidden_layers": True}, (), "num_hidden_layers is True"),
    "no number": ({"rms_norm_eps": float("nan")}, (), "rms_norm_eps is nan; expected a number of at least 0"),
    "heads that do not divide": ({"num_key_value_heads": 3}, (), "heads 4 is not a multiple of kv_heads 3"),
    "an unknown activation": ({"hidden_act": "mish"}, (), "hidden_act is 'mish'; expected one of gelu"),
    "an unknown rope": ({"rope_scaling": {"rope_type": "longrope"}}, (), "rope_type is 'longrope'; expected default"),
    "a rope of text": ({"rope_scaling": "linear"}, (), "rope_scaling is 'linear'; expected an object"),
    "a rope of no factor": ({"rope_scaling": {"rope_type": "yarn", "factor": 0}}, (), "rotary positions: factor is 0.0; expected"),
    "architectures of a number": ({"architectures": 5}, ("model_type",), "model_type is ''; expected one of gpt2"),
    "an unknown family": ({"model_type": "bloom"}, (), "model_type is 'bloom'; expected one of gpt2"),
    "more layers than tensors": ({"num_hidden_layers": 4}, (), "layers.3.self_attn.q_proj.weight is missing|is missing"),
    "fewer layers than tensors": ({"num_hidden_layers": 2}, (), "layers.2.* belongs to no part"),
    "another vocabulary": ({"vocab_size": 96}, (), r"embed_tokens.weight has the shape \(97, 32\)"),
}  # fmt: skip


GEMMA = {"model_type": "gemma2", "query_pre_attn_scalar": 0}
QWEN = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4}
BAD |= {
    "a scale of nothing": (GEMMA, (), "query_pre_attn_scalar is 0; expected a number above 0"),
    "gemma's hundred million layers": (GEMMA | {"num_hidden_layers": 10**8 - 1}, (), "from 1 to 1000"),
    "a million experts": ({"model_type": "mixtral", "num_local_experts": 10**6}, (), "num_local_experts is 1000000; expected"),
    "windows from a text on": (QWEN | {"max_window_layers": "2"}, (), "max_window_layers is '2'; expected a whole number"),
    "layers of lists": (QWEN | {"layer_types": [[1], [1], [1]]}, (), "expected 3 times sliding_attention or full_attention"),
    "windows from nowhere on": (QWEN | {"max_window_layers": None}, (), "q_proj.bias is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_configuration_is_one_line(name, tmp_path):
    changes, without, message = BAD[name]
    write("llama", tmp_path / "out")
    change_config(tmp_path / "out", changes, without=without)
    with pytest.raises(UserError, match=message) as caught:
        open_checkpoint(tmp_path / "out")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 10_000, '{"a": 1' + "0" * 5000 + "}"])
def test_a_configuration_that_is_no_object(content, tmp_path):
    write("llama", tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(content)
    with pytest.raises(UserError, match="config.json"):
        open_checkpoint(tmp_path / "out")


def test_code_of_a_checkpoint_is_not_run_and_that_is_said(tmp_path, capsys):
    write("llama", tmp_path / "out")
    (tmp_path / "out" / "evil.py").write_text("raise SystemExit('it ran')")
    change_config(tmp_path / "out", {"auto_map": {"AutoModelForCausalLM": "evil.Model"}})
    with pytest.warns(Notice, match="out: auto_map is ignored: no code of a checkpoint is run"):
        lmjax.load(tmp_path / "out")
    assert capsys.readouterr().out == ""


def test_an_export_leaves_nothing_half_written(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not an empty directory"):
        write("llama", tmp_path / "out")
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_to_nearest_even(dtype, tmp_path):
    params = write("llama", tmp_path / "out", dtype=dtype)
    loaded = load_params(open_checkpoint(tmp_path / "out"), stacked=True)
    rounded = jax.jit(lambda x: jax.tree.map(lambda x: x.astype(dtype), x))(params)
    assert_same(loaded, jax.tree.map(lambda x: np.asarray(x, np.float32), rounded))


def test_numbers_beyond_float16(tmp_path):
    params = params_of(LLAMA)
    params["final_norm"]["scale"] = np.where(np.arange(LLAMA.width) == 3, np.float32(-1e5), 1)
    with pytest.raises(UserError, match="--dtype float16: norm.weight has numbers above 65,504"):
        export(LLAMA, params, None, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_loading_takes_little_more_memory_than_the_parameters(tmp_path):
    """Anonymous memory of a process of its own, watched all the time: at most 1.3 times the parameters plus 300 MB,
    stacked on a mesh and apart on one device."""
    feedforward = replace(LLAMA.feedforward, width=4096)
    cfg = replace(LLAMA, layers=6, width=1024, heads=16, kv_heads=8, head_dim=64, vocab=20_000, feedforward=feedforward)
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), transformer.abstract_params(cfg))
    export(cfg, params, None, tmp_path / "out")
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    code = (
        "import sys\nfrom pathlib import Path\nfrom lmjax.interop.read import load_params, open_checkpoint\n"
        "from lmjax.sharding import Mesh, build_mesh\n"
        "mesh = build_mesh(Mesh(fsdp=2, tensor=4)) if sys.argv[2] == 'stacked' else None\n"
        "load_params(open_checkpoint(Path(sys.argv[1])), stacked=mesh is not None, mesh=mesh)\n"
    )
    for how in ("stacked", "apart"):
        devices = 8 if how == "stacked" else 1
        environment = tiny.environment_of_a_process()
        environment["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
        command = [sys.executable, "-c", code, str(tmp_path / "out"), how]
        process, most = subprocess.Popen(command, cwd=tiny.ROOT, env=environment), 0
        while process.poll() is None:
            most = max(most, anonymous_memory(process.pid))
            time.sleep(0.002)
        assert process.returncode == 0
        assert size < most <= 1.3 * size + 300e6, how


def anonymous_memory(pid: int) -> int:
    """Bytes; 0 where the process has ended."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s*(\d+) kB", text + "RssAnon: 0 kB")[1]) * 1024


def test_a_model_to_call(tmp_path):
    from lmjax.tokenizers import Bytes

    cfg = replace(LLAMA, vocab=258, layers=1)
    export(cfg, params_of(cfg), Bytes(bos=True).build(list), tmp_path / "out")
    model = lmjax.load(tmp_path / "out")
    one, both = model("hello"), model(["hello", "hello you"])
    assert one.tokens.tolist() == [[256, *b"hello"]]
    np.testing.assert_allclose(both.logits[0, :6], one.logits[0], atol=1e-5)
    score = model.score("hello")
    assert score.log_probability == pytest.approx(-one.loss * 5, rel=1e-5)
    assert score.log_probability == pytest.approx(score.each.sum(), rel=1e-6)
    text = model.generate("hel", max_new_tokens=4)
    assert text.startswith("hel") and isinstance(text, str)
    assert model.generate(["hel", "you"], max_new_tokens=4)[0] == text
    rows = model.generate(np.array([[256, *b"hel"]]), max_new_tokens=4)
    assert rows[0][:4].tolist() == [256, *b"hel"] and len(rows[0]) <= 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (np.array([1, 2]), r"expected integers of shape \(B, T\)"),
        (np.array([[1, 97]]), "expected 0 to 96, the vocabulary"),
        (np.array([[-1, 9]]), "ids from -1"),
        (np.array([[0.5]]), "expected integers"),
        (np.zeros((1, 33), int), "a text of 33 tokens; expected 1 to 32"),
        ("hello", "has no tokenizer; expected an array of token ids"),
    ],
)
def test_bad_input_to_a_model(text, message, tmp_path):
    write("llama", tmp_path / "out")
    with pytest.raises(UserError, match=message):
        lmjax.load(tmp_path / "out")(text)


@pytest.mark.parametrize("changes", [{"weights": "float16"}, {"dtype": "float16"}, {"dtype": "flaot32"}])
def test_numbers_that_there_are_not(changes, tmp_path):
    ((name, value),) = changes.items()
    with pytest.raises(UserError, match=f"{name} is '{value}'; expected one of float32, bfloat16"):
        lmjax.load(tmp_path, **changes)


def test_a_bare_name_is_never_looked_for_elsewhere():
    with pytest.raises(UserError, match="gpt2: no such directory .a model of the Hugging Face hub is named hf:NAME."):
        lmjax.load("gpt2")
