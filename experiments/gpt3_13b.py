"""GPT-3 13B (arXiv:2005.14165, table 2.1): as gpt3_6_7b.py, larger.

python run.py plan --config experiments/gpt3_13b.py
"""

from dataclasses import replace

from gpt3_6_7b import experiment as smaller

from lmjax.models import zoo
from lmjax.optim import Cosine
from lmjax.sharding import Mesh

experiment = replace(
    smaller,
    name="gpt3_13b",
    model=zoo.gpt3("13b", dtype="bfloat16", remat="products"),
    schedule=Cosine(peak=0.0001, warmup=375e6 / 300e9, share=260e9 / 300e9, floor=1e-05),
    mesh=Mesh(data="rest", fsdp=8),
    batch_size=1024,
    microbatches=1,
    steps=143_051,
    topology="v5p:4x8x8",
)
