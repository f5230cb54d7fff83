"""GPT-3 175B (arXiv:2005.14165, table 2.1): as gpt3_13b.py, larger.

python run.py plan --config experiments/gpt3_175b.py
"""

from dataclasses import replace

from gpt3_13b import experiment as smaller

from lmjax.models import zoo
from lmjax.optim import Cosine
from lmjax.sharding import Mesh

experiment = replace(
    smaller,
    name="gpt3_175b",
    model=zoo.gpt3("175b", dtype="bfloat16", remat="products"),
    schedule=Cosine(peak=6e-05, warmup=375e6 / 300e9, share=260e9 / 300e9, floor=6e-06),
    mesh=Mesh(data=1, fsdp=64, tensor=8),
    batch_size=1536,
    microbatches=8,
    steps=95_367,
    topology="v5p:8x8x8",
)
