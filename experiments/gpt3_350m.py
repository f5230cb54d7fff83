"""GPT-3 Medium (arXiv:2005.14165, table 2.1): as gpt3_125m.py, larger.

python run.py plan --config experiments/gpt3_350m.py
"""

from dataclasses import replace

from gpt3_125m import experiment as smaller

from lmjax.models import zoo
from lmjax.optim import Cosine
from lmjax.sharding import Mesh

experiment = replace(
    smaller,
    name="gpt3_350m",
    model=zoo.gpt3("medium", dtype="bfloat16", remat="products"),
    schedule=Cosine(peak=0.0003, warmup=375e6 / 300e9, share=260e9 / 300e9, floor=3e-05),
    mesh=Mesh(data=1, fsdp=8),
    batch_size=256,
    microbatches=8,
    steps=572_205,
    topology="v5e:2x4",
)
