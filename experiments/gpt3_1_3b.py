"""GPT-3 XL (arXiv:2005.14165, table 2.1): as gpt3_760m.py, larger.

python run.py plan --config experiments/gpt3_1_3b.py
"""

from dataclasses import replace

from gpt3_760m import experiment as smaller

from lmjax.models import zoo
from lmjax.optim import Cosine
from lmjax.sharding import Mesh

experiment = replace(
    smaller,
    name="gpt3_1_3b",
    model=zoo.gpt3("xl", dtype="bfloat16", remat="products"),
    schedule=Cosine(peak=0.0002, warmup=375e6 / 300e9, share=260e9 / 300e9, floor=2e-05),
    mesh=Mesh(data="rest", fsdp=8),
    batch_size=512,
    microbatches=4,
    steps=286_102,
    topology="v5e:8x8",
)
