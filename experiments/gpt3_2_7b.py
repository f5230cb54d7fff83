"""GPT-3 2.7B (arXiv:2005.14165, table 2.1): as gpt3_1_3b.py, larger.

python run.py plan --config experiments/gpt3_2_7b.py
"""

from dataclasses import replace

from gpt3_1_3b import experiment as smaller

from lmjax.models import zoo
from lmjax.optim import Cosine
from lmjax.sharding import Mesh

experiment = replace(
    smaller,
    name="gpt3_2_7b",
    model=zoo.gpt3("2.7b", dtype="bfloat16", remat="products"),
    schedule=Cosine(peak=0.00016, warmup=375e6 / 300e9, share=260e9 / 300e9, floor=1.6e-05),
    mesh=Mesh(data="rest", fsdp=4),
    batch_size=512,
    microbatches=1,
    steps=286_102,
    topology="v5p:4x4x4",
)
