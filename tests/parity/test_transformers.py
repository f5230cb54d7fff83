"""Against transformers and PyTorch: logits, loss, gradients of small random models; optimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from lmjax import optim, trees
from lmjax.models import transformer
from lmjax.models.attention import Blocks
from lmjax.optim import AdamW, Constant, Muon
from lmjax.tasks.causal_lm import CausalLM
from tests import tiny
from tests.interop.directories import params_of

T = 64


def theirs_gpt2(cfg, params):
    config = transformers.GPT2Config(
        n_layer=cfg.layers, n_head=cfg.heads, n_embd=cfg.width, n_positions=cfg.context, vocab_size=cfg.vocab,
        resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0, attn_implementation="eager", bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    state = {"transformer.wte.weight": params["embedding"], "transformer.wpe.weight": params["positions"]}
    state["lm_head.weight"] = params["embedding"]
    state["transformer.ln_f.weight"], state["transformer.ln_f.bias"] = (
        params["final_norm"][n] for n in ("scale", "bias")
    )
    for i in range(cfg.layers):
        p = jax.tree.map(lambda x, i=i: np.asarray(x[i]), params["blocks"])
        a, f, D = p["attention"], p["feedforward"], cfg.width
        here = {
            "attn.c_attn.weight": np.concatenate([a[n]["kernel"].reshape(D, D) for n in "qkv"], 1),
            "attn.c_attn.bias": np.concatenate([a[n]["bias"].reshape(D) for n in "qkv"]),
            "attn.c_proj.weight": a["out"]["kernel"].reshape(D, D), "attn.c_proj.bias": a["out"]["bias"],
            "mlp.c_fc.weight": f["up"]["kernel"], "mlp.c_fc.bias": f["up"]["bias"],
            "mlp.c_proj.weight": f["down"]["kernel"], "mlp.c_proj.bias": f["down"]["bias"],
            "ln_1.weight": p["attention_norm"]["scale"], "ln_1.bias": p["attention_norm"]["bias"],
            "ln_2.weight": p["feedforward_norm"]["scale"], "ln_2.bias": p["feedforward_norm"]["bias"],
        }  # fmt: skip
        state |= {f"transformer.h.{i}.{name}": value for name, value in here.items()}
    model.load_state_dict({name: torch.tensor(np.asarray(value)) for name, value in state.items()})
    return model


def theirs_llama(cfg, params):
    config = transformers.LlamaConfig(
        num_hidden_layers=cfg.layers, num_attention_heads=cfg.heads, num_key_value_heads=cfg.n_kv_heads,
        hidden_size=cfg.width, head_dim=cfg.head_width, intermediate_size=cfg.hidden, vocab_size=cfg.vocab,
        max_position_embeddings=cfg.context, rms_norm_eps=cfg.norm.epsilon, tie_word_embeddings=False,
        attn_implementation="eager", rope_parameters={"rope_type": "default", "rope_theta": cfg.positions.theta},
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    state = {
        "model.embed_tokens.weight": params["embedding"], "lm_head.weight": params["unembedding"],
        "model.norm.weight": params["final_norm"]["scale"],
    }  # fmt: skip
    for i in range(cfg.layers):
        p = jax.tree.map(lambda x, i=i: np.asarray(x[i]), params["blocks"])
        a, f, D = p["attention"], p["feedforward"], cfg.width
        here = {f"self_attn.{n}_proj.weight": a[n]["kernel"].reshape(D, -1).T for n in "qkv"} | {
            "self_attn.o_proj.weight": a["out"]["kernel"].reshape(-1, D).T,
            "mlp.gate_proj.weight": f["gate"]["kernel"].T, "mlp.up_proj.weight": f["up"]["kernel"].T,
            "mlp.down_proj.weight": f["down"]["kernel"].T, "input_layernorm.weight": p["attention_norm"]["scale"],
            "post_attention_layernorm.weight": p["feedforward_norm"]["scale"],
        }  # fmt: skip
        state |= {f"model.layers.{i}.{name}": value for name, value in here.items()}
    model.load_state_dict({name: torch.tensor(np.array(value)) for name, value in state.items()})
    return model


MODELS = {
    "gpt2": (tiny.gpt2(context=T, kernel=Blocks(size=24)), theirs_gpt2),
    "llama": (tiny.llama(context=T, qk_norm=False, head_dim=12, kernel=Blocks(size=24)), theirs_llama),
}


@pytest.fixture(params=MODELS, scope="module")
def pair(request):
    cfg, build = MODELS[request.param]
    params = params_of(cfg)
    return cfg, params, build(cfg, params), tiny.batch(cfg, 3)


def test_logits(pair):
    cfg, params, model, batch = pair
    with torch.no_grad():
        theirs = model(torch.tensor(batch.tokens_BT.astype(np.int64))).logits.numpy()

    @jax.jit
    def logits(params):
        hidden, _ = transformer.hidden(cfg, params, batch.tokens_BT, batch.positions_BT)
        return transformer.logits(transformer.unembedding(cfg, params), hidden, cfg.logit_cap)

    ours = logits(params)
    assert np.abs(theirs).max() > 3
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_loss_and_gradient(pair):
    cfg, params, model, batch = pair
    model.zero_grad()
    logits = model(torch.tensor(batch.tokens_BT.astype(np.int64))).logits
    targets = torch.tensor(batch.targets_BT.astype(np.int64)).reshape(-1)
    theirs = torch.nn.functional.cross_entropy(logits.reshape(-1, cfg.vocab), targets, reduction="sum")
    theirs.backward()
    loss = lambda params: CausalLM().training_loss(cfg, params, batch, None).total
    ours, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert float(ours) == pytest.approx(theirs.item(), rel=1e-6)
    named = dict(model.named_parameters())
    embedding = named.get("transformer.wte.weight", named.get("model.embed_tokens.weight")).grad.numpy()
    final = named.get("transformer.ln_f.weight", named.get("model.norm.weight")).grad.numpy()
    for ours, theirs in ((gradient["embedding"], embedding), (gradient["final_norm"]["scale"], final)):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    norm = np.sqrt(sum((p.grad.numpy().astype(np.float64) ** 2).sum() for p in named.values()))
    assert float(optax.tree.norm(gradient)) == pytest.approx(norm, rel=1e-5)


def steps(tx, params, gradients):
    state = tx.init(params)
    for g in gradients:
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_adamw_equals_torch():
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(6, 5)), rng.normal(size=(10, 6, 5))
    weight = torch.nn.Parameter(torch.tensor(start))
    theirs = torch.optim.AdamW([weight], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for g in gradients:
        weight.grad = torch.tensor(g)
        theirs.step()
    tx = optim.transform(AdamW(b2=0.95, clip=None), Constant(peak=0.01), 10)
    ours = steps(tx, {"kernel": jnp.float32(start)}, [{"kernel": jnp.float32(g)} for g in gradients])
    np.testing.assert_allclose(ours["kernel"], weight.detach().numpy(), atol=1e-6)


def test_muon_equals_torch():
    """torch.optim.Muon, which computes in bfloat16, so the directions can agree only to its precision."""
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(16, 8)), rng.normal(size=(5, 16, 8))
    # PyTorch keeps a matrix as (out, in)
    weight = torch.nn.Parameter(torch.tensor(start.T.copy(), dtype=torch.float32))
    theirs = torch.optim.Muon([weight], lr=0.01, momentum=0.95, weight_decay=0.0, adjust_lr_fn="original")
    for g in gradients:
        weight.grad = torch.tensor(g.T.copy(), dtype=torch.float32)
        theirs.step()
    tx = optim.transform(Muon(), Constant(peak=0.01), 10)
    tree = lambda x: {"blocks": {"w": {"kernel": jnp.float32(x)[None]}}}
    ours = dict(trees.named_leaves(steps(tx, tree(start), [tree(g) for g in gradients])))["blocks/w/kernel"][0]
    moved = np.abs(weight.detach().numpy().T - start).max()
    np.testing.assert_allclose(ours, weight.detach().numpy().T, atol=0.1 * moved)


def test_gpt2_tokenizer_files_give_the_ids_of_transformers(tmp_path):
    import tokenizers

    from lmjax.tokenizers import HuggingFace

    bpe = tokenizers.ByteLevelBPETokenizer()
    text = tiny.text(20_000) + " émigré 漢字 don't  it's\n\n\tx"
    bpe.train_from_iterator([text], vocab_size=500, special_tokens=["<|endoftext|>"])
    bpe.save_model(str(tmp_path))
    theirs = transformers.GPT2Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    ours = HuggingFace(path=str(tmp_path)).build(list)
    assert ours.encode(text).tolist() == theirs(text)["input_ids"]
