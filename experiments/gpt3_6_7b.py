"""GPT-3 6.7B (arXiv:2005.14165, table 2.1): as gpt3_2_7b.py, larger.

python run.py plan --config experiments/gpt3_6_7b.py
"""

from dataclasses import replace

from gpt3_2_7b import experiment as smaller

from lmjax.models import zoo
from lmjax.optim import Cosine
from lmjax.sharding import Mesh

experiment = replace(
    smaller,
    name="gpt3_6_7b",
    model=zoo.gpt3("6.7b", dtype="bfloat16", remat="products"),
    schedule=Cosine(peak=0.00012, warmup=375e6 / 300e9, share=260e9 / 300e9, floor=1.2e-05),
    mesh=Mesh(data="rest", fsdp=32),
    batch_size=1024,
    microbatches=8,
    steps=143_051,
    topology="v5e:8x16",
)
