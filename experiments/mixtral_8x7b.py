"""Mixtral 8x7B's shape (arXiv:2401.04088, table 1), trained from scratch on JSON lines of your own.

    python run.py plan --config experiments/mixtral_8x7b.py

Its context is 32,768, here 4,096. Eight experts in each layer, of which a token uses two: 46.7 billion parameters,
12.9 billion used. The optimizer is llama3_8b.py's and the number of tokens Chinchilla's for the parameters that are
used; the paper says neither.
"""

from dataclasses import replace

from llama3_8b import experiment as dense

from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Experts
from lmjax.models.norms import RMSNorm
from lmjax.models.positions import Rotary
from lmjax.optim import Cosine
from lmjax.sharding import Mesh
from lmjax.tokenizers import HuggingFace

experiment = replace(
    dense,
    name="mixtral_8x7b",
    model=ModelConfig(
        layers=32,
        width=4096,
        heads=32,
        kv_heads=8,
        context=4096,
        vocab=32_000,
        positions=Rotary(theta=1e6),
        norm=RMSNorm(),
        bias=False,
        tied=False,
        feedforward=Experts(count=8, chosen=2, width=14_336),
        dtype="bfloat16",
        remat="everything",
    ),
    tokenizer=HuggingFace(path="mixtral/", bos="<s>", eos="</s>"),
    schedule=Cosine(peak=2e-4, warmup=0.01, floor=2e-5),
    mesh=Mesh(data=1, fsdp=16, expert=8),
    batch_size=1024,
    microbatches=4,
    steps=61_500,
    topology="v5p:4x4x8",
)
