"""GPT-3 Large (arXiv:2005.14165, table 2.1): as gpt3_350m.py, larger.

python run.py plan --config experiments/gpt3_760m.py
"""

from dataclasses import replace

from gpt3_350m import experiment as smaller

from lmjax.models import zoo
from lmjax.optim import Cosine
from lmjax.sharding import Mesh

experiment = replace(
    smaller,
    name="gpt3_760m",
    model=zoo.gpt3("large", dtype="bfloat16", remat="products"),
    schedule=Cosine(peak=0.00025, warmup=375e6 / 300e9, share=260e9 / 300e9, floor=2.5e-05),
    mesh=Mesh(data="rest", fsdp=4),
    batch_size=256,
    microbatches=8,
    steps=572_205,
    topology="v5e:4x4",
)
