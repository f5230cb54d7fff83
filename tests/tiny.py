"""Small models, experiments, batches and processes for the tests."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.sources import TextFiles
from lmjax.experiment import DataConfig, Experiment
from lmjax.models import transformer
from lmjax.models.config import ModelConfig, Span
from lmjax.models.feedforward import Dense, Experts, Gated
from lmjax.models.norms import LayerNorm, RMSNorm
from lmjax.models.positions import Learned, Relative, Rotary, Sinusoidal, Stretched
from lmjax.optim import AdamW, Cosine
from lmjax.tokenizers import Bytes
from lmjax.tokenizers.byte_level import byte_letters
from lmjax.trees import map_named

ROOT = Path(__file__).parents[1]
# the tests compile many tiny programs once: what only makes programs faster would make the tests slower
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)

WORDS = [
    "the",
    "a",
    "model",
    "reads",
    "words",
    "and",
    "learns",
    "what",
    "comes",
    "after",
    "them",
    "because",
    "every",
    "text",
    "has",
    "an",
    "order",
    "of",
    "its",
    "own",
]


def text(characters: int, seed: int = 0) -> str:
    """Lines of words in a random but repeatable order."""
    rng = np.random.default_rng(seed)
    words = rng.choice(WORDS, size=characters // 4)
    lines = [" ".join(words[i : i + 9]) for i in range(0, len(words), 9)]
    return "\n".join(lines)[:characters]


def gpt2(**changes) -> ModelConfig:
    """Learned positions, LayerNorm, biases, tied; weights large enough that attention is not flat."""
    cfg = ModelConfig(layers=2, width=32, heads=4, context=32, vocab=97, init_std=0.2)
    return replace(cfg, **changes)


def llama(**changes) -> ModelConfig:
    """Rotary positions, RMSNorm, gated, grouped keys, untied."""
    cfg = ModelConfig(
        layers=2, width=32, heads=4, kv_heads=2, context=32, vocab=97, init_std=0.2, positions=Rotary(),
        norm=RMSNorm(), feedforward=Gated(width=48), bias=False, tied=False, qk_norm=True,
    )  # fmt: skip
    return replace(cfg, **changes)


def gemma(**changes) -> ModelConfig:
    """Alternating windows with angles of their own, caps, norms after each part, scaled embeddings."""
    cfg = ModelConfig(
        layers=3, width=32, heads=4, kv_heads=2, head_dim=12, context=32, vocab=97, init_std=0.2,
        positions=Rotary(theta=1e5, stretch=Stretched(factor=3.0)), norm=RMSNorm(offset=True), bias=False,
        feedforward=Gated(width=48, activation="gelu_tanh"), qk_norm=True, score_scale=0.4, score_cap=4.0, logit_cap=9.0,
        pattern=(Span(window=7, rotary=Rotary(theta=100.0)), Span()), post_norms=True, scaled_embedding=True,
    )  # fmt: skip
    return replace(cfg, **changes)


def neox(**changes) -> ModelConfig:
    """Parallel residual, a quarter of each head turned, scores scaled by layer, untied."""
    cfg = ModelConfig(
        layers=2, width=32, heads=2, context=32, vocab=97, init_std=0.2, positions=Rotary(fraction=0.25), parallel=True,
        feedforward=Dense(activation="gelu"), tied=False, scale_by_layer=True,
    )  # fmt: skip
    return replace(cfg, **changes)


def mixtral(**changes) -> ModelConfig:
    """Two of five experts for each token, a window in every layer."""
    cfg = ModelConfig(
        layers=2, width=32, heads=4, kv_heads=2, context=32, vocab=97, init_std=0.2, positions=Rotary(), norm=RMSNorm(),
        feedforward=Experts(count=5, chosen=2, width=24), bias=False, tied=False, pattern=(Span(window=9),),
    )  # fmt: skip
    return replace(cfg, **changes)


def bert(**changes) -> ModelConfig:
    """An encoder: norms behind, two types of tokens, both heads."""
    cfg = ModelConfig(
        layers=2, width=32, heads=4, context=32, vocab=97, init_std=0.2, feedforward=Dense(width=48, activation="gelu"),
        positions=Learned(offset=2), norm=LayerNorm(epsilon=1e-3), causal=False, norm_first=False, embedding_norm=True,
        token_types=2, masked_head="gelu", pooler=True,
    )  # fmt: skip
    return replace(cfg, **changes)


def translator(**changes) -> ModelConfig:
    """The Transformer of 2017: norms behind, sinusoidal positions, one embedding for all."""
    cfg = ModelConfig(
        layers=2, encoder_layers=3, width=32, heads=4, context=32, vocab=97, norm_first=False, scaled_embedding=True,
        feedforward=Dense(width=48, activation="relu"), positions=Sinusoidal(), bias=False, init_std=0.2,
    )  # fmt: skip
    return replace(cfg, **changes)


def t5(**changes) -> ModelConfig:
    """Relative positions in few buckets, scores not scaled, gated, untied."""
    cfg = ModelConfig(
        layers=3, encoder_layers=2, width=32, heads=4, head_dim=12, context=32, vocab=97, bias=False, init_std=0.2,
        positions=Relative(buckets=8, distance=13), score_scale=1.0, norm=RMSNorm(epsilon=1e-3), tied=False,
        feedforward=Gated(width=48, activation="gelu_tanh"),
    )  # fmt: skip
    return replace(cfg, **changes)


def params(cfg: ModelConfig, seed: int = 0):
    """Weights, and biases and scales that are not 0 and 1, so that a forgotten one is seen."""
    return jax.tree.map(jnp.asarray, drawn(cfg, seed))


@functools.cache
def drawn(cfg: ModelConfig, seed: int = 0):
    """The same in NumPy, for any devices; to compile what draws takes longer than to compile the model."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        x = rng.normal(size=shape.shape)
        if path.endswith(("bias", "scale")):
            one = path.endswith("scale") and not getattr(cfg.norm, "offset", False)
            return (one + 0.1 * x).astype(shape.dtype)
        return (cfg.init_std * x).astype(shape.dtype)

    return map_named(leaf, transformer.abstract_params(cfg))


# one program for each model and shape; without jax.jit every operation is a program of its own
hidden = jax.jit(transformer.hidden, static_argnames="cfg")
encode = jax.jit(transformer.encode, static_argnames="cfg")


@functools.partial(jax.jit, static_argnames="cfg")
def logits(cfg, params, tokens_BT, positions_BT, segments_BT=None, **more):
    """(B, T, V)"""
    hidden_BTD, _ = transformer.hidden(cfg, params, tokens_BT, positions_BT, segments_BT, **more)
    return transformer.logits(transformer.unembedding(cfg, params), hidden_BTD, cfg.logit_cap)


def experiment(path, **changes) -> Experiment:
    """A byte model of a text file that trains a step in milliseconds, with dropout, accumulation and warm-up on."""
    base = Experiment(
        name="tiny", seed=3,
        model=ModelConfig(layers=2, width=16, heads=2, context=16, dropout=0.1),
        tokenizer=Bytes(), data=DataConfig(source=TextFiles(path=str(path))),
        optimizer=AdamW(b2=0.95), schedule=Cosine(peak=1e-2, warmup=0.3, floor=1e-3),
        batch_size=16, microbatches=2, steps=20, evaluate_every=10, checkpoint_every=5, sample_every=20,
    )  # fmt: skip
    return replace(base, **changes)


def batch(cfg: ModelConfig, rows: int, *, seed: int = 0, apart: bool = False, ragged: bool = False) -> Batch:
    """Random tokens. apart: two documents a row. ragged: each row counts another number of its targets."""
    rng = np.random.default_rng(seed)
    T = cfg.context
    ids_BS = rng.integers(0, cfg.vocab, (rows, T + 1), dtype=np.int32)
    positions_BT = np.tile(np.arange(T, dtype=np.int32), (rows, 1))
    weights_BT = np.ones((rows, T), np.float32)
    segments_BT = None
    if apart:
        cut = T // 3
        segments_BT = np.tile((np.arange(T) >= cut).astype(np.int32) + 1, (rows, 1))
        positions_BT = np.where(segments_BT == 2, positions_BT - cut, positions_BT)
        weights_BT[:, cut - 1] = 0
    if ragged:
        weights_BT *= np.arange(T) < rng.integers(1, T, (rows, 1))
    return Batch(ids_BS[:, :-1], positions_BT, segments_BT, ids_BS[:, 1:], weights_BT)


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def chatml(directory: Path, template: str = CHATML) -> Path:
    """Into the directory a tokenizer of bytes and the two control tokens of ChatML, 256 and 257."""
    import tokenizers

    letters = byte_letters()
    built = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = tokenizers.decoders.ByteLevel()
    built.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    built.save(str(directory / "tokenizer.json"))
    settings = {"chat_template": template, "eos_token": "<|im_end|>", "bos_token": None}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def environment_of_a_process() -> dict[str, str]:
    """For `python run.py` as a user would start it, on one device; its programs are quick to compile."""
    return os.environ | {"XLA_FLAGS": QUICK_TO_COMPILE, "PYTHONPATH": str(ROOT)}


# an experiment file for a text
EXPERIMENT = """
from dataclasses import replace
from tests import tiny
experiment = tiny.experiment({text!r})
"""


def spawn(words, place, before=(), **options):
    """run.py with these words, begun in a folder. before: a command that runs it."""
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment_of_a_process()} | options
    return subprocess.Popen([*before, sys.executable, str(ROOT / "run.py"), *words], cwd=place, text=True, **settings)
