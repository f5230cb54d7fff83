"""Llama 3 8B with a context of 131,072 tokens (arXiv:2407.21783, section 3.4.2): rows split over devices.

    python run.py plan --config experiments/llama3_8b_128k.py

Of the paper's long-context stage only the shape is taken; rotary frequencies are those of its first stage.
"""

from dataclasses import replace

from llama3_8b import experiment as short

from lmjax.optim import Cosine
from lmjax.sharding import Mesh

experiment = replace(
    short,
    name="llama3_8b_128k",
    model=replace(short.model, context=131_072),
    schedule=Cosine(peak=3e-5, warmup=0.01, floor=3e-6),
    mesh=Mesh(data="rest", fsdp=4, sequence=8),
    batch_size=32,
    microbatches=2,
    steps=1000,
    topology="v5p:4x4x8",
)
