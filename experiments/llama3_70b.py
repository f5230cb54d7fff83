"""Llama 3 70B (arXiv:2407.21783, table 3): as llama3_8b.py, larger.

python run.py plan --config experiments/llama3_70b.py
"""

from dataclasses import replace

from llama3_8b import experiment as smaller

from lmjax.models import zoo
from lmjax.optim import Cosine
from lmjax.sharding import Mesh

experiment = replace(
    smaller,
    name="llama3_70b",
    model=zoo.llama("3-70b", dtype="bfloat16", remat="products"),
    schedule=Cosine(peak=1.5e-4, warmup=0.012, floor=1.5e-5),
    mesh=Mesh(data=1, fsdp=64, tensor=4),
    batch_size=512,
    microbatches=4,
    steps=336_400,
    topology="v5p:4x8x8",
)
