"""Checkpoint directories for the tests, without transformers."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from lmjax import trees
from lmjax.interop.write import export
from lmjax.models import transformer
from lmjax.models.config import ModelConfig, Span
from lmjax.models.feedforward import Dense, Gated
from lmjax.models.norms import RMSNorm
from lmjax.models.positions import Llama3, Rotary, Stretched
from tests import tiny

LLAMA = tiny.llama(qk_norm=False, head_dim=12, layers=3)
CONFIGS: dict[str, ModelConfig] = {
    "gpt2": tiny.gpt2(layers=3, scale_by_layer=True),
    "gpt_neox": tiny.neox(layers=3, scale_by_layer=False),
    "llama": replace(LLAMA, positions=Rotary(theta=500.0, stretch=Llama3(factor=4.0, low=1.0, high=3.0, original=16))),
    "mistral": replace(LLAMA, pattern=(Span(window=9),)),
    "mixtral": tiny.mixtral(layers=3),
    "qwen2": tiny.llama(
        layers=3, qk_norm=False, bias=True, out_bias=False, tied=True, pattern=(Span(), Span(window=9), Span(window=9))
    ),
    "qwen3": tiny.llama(layers=3, head_dim=12),
    "gemma2": tiny.gemma(
        qk_norm=False, score_scale=5**-0.5, positions=Rotary(), pattern=(Span(window=7), Span()), norm=RMSNorm(epsilon=1e-6, offset=True)
    ),
    "gemma3_text": tiny.gemma(
        score_cap=None, score_scale=5**-0.5, positions=Rotary(theta=1e6, stretch=Stretched(factor=4.0)),
        pattern=(Span(window=7, rotary=Rotary()), Span()), feedforward=Gated(width=48, activation="gelu_tanh"),
    ),
}  # fmt: skip
# what trains here and is written as something else that computes the same
WIDENED = {
    "nanogpt": tiny.gpt2(bias=False, feedforward=Dense(activation="gelu", bias=False)),
    "squared": tiny.llama(feedforward=Dense(width=48, activation="relu_squared", bias=False), tied=True),
}


def params_of(cfg: ModelConfig) -> dict:
    """No bias 0, no scale 1, so that a forgotten one is seen. NumPy's: neither to make them nor to cut a layer from them
    is anything compiled. A tree of the caller's own."""
    return jax.tree.map(lambda x: x, _params_of(cfg))


@functools.cache
def _params_of(cfg: ModelConfig) -> dict:
    rng = np.random.default_rng(0)

    def made(path, x):
        centre, spread = {"scale": (1, 0.1), "bias": (0, 0.1)}.get(path.split("/")[-1], (0, cfg.init_std))
        if path.endswith("scale") and getattr(cfg.norm, "offset", False):
            centre = 0
        leaf = (centre + spread * rng.standard_normal(x.shape)).astype(np.float32)
        leaf.flags.writeable = False
        return leaf

    return trees.map_named(made, transformer.abstract_params(cfg))


def write(name: str, directory: Path, **options) -> dict:
    """The checkpoint of that name; its parameters."""
    cfg = (CONFIGS | WIDENED)[name]
    params = params_of(cfg)
    export(cfg, params, None, directory, **options)
    return params


def change_config(directory: Path, changes: dict, *, without: tuple[str, ...] = ()) -> None:
    file = directory / "config.json"
    config = {name: value for name, value in json.loads(file.read_text()).items() if name not in without} | changes
    file.write_text(json.dumps(config))


def gpt2_tokenizer_files(directory: Path) -> None:
    """vocab.json and merges.txt of a byte-level BPE with a few merges and GPT-2's control token."""
    _tokenizer_files(directory, [], ["<|endoftext|>"])


def roberta_tokenizer_files(directory: Path) -> None:
    """The same with RoBERTa's control tokens."""
    _tokenizer_files(directory, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], [])


def _tokenizer_files(directory: Path, first: list[str], last: list[str]) -> None:
    from lmjax.tokenizers.byte_level import byte_letters

    merges = ["h e", "l l", "he ll", "hell o", "Ġ d", "Ġd o", "o g"]
    pieces = [*first, *byte_letters(), *(merge.replace(" ", "") for merge in merges), *last]
    (directory / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
