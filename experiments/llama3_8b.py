"""Llama 3 8B (arXiv:2407.21783, table 3), on JSON lines of your own; llama3_70b.py derives from it.

    python run.py plan --config experiments/llama3_8b.py

The shape, the context and AdamW with cosine to a tenth are the paper's (section 3.4.1: peak 3e-4 for 8B); the number of
tokens is Chinchilla's for this size, not the paper's 15 trillion. Result: not measured; what it needs, `plan` says.
"""

from lmjax.data.sources import JsonLines, WholeDocuments
from lmjax.experiment import DataConfig, Experiment
from lmjax.models import zoo
from lmjax.optim import AdamW, Cosine
from lmjax.sharding import Mesh
from lmjax.tokenizers import HuggingFace

experiment = Experiment(
    name="llama3_8b",
    model=zoo.llama("3-8b", dtype="bfloat16", remat="products"),
    tokenizer=HuggingFace(path="llama3/", bos="<|begin_of_text|>", eos="<|end_of_text|>"),
    data=DataConfig(source=JsonLines(path="text/*.jsonl.gz", held_out=WholeDocuments(share=0.0005)), documents="apart"),
    optimizer=AdamW(b1=0.9, b2=0.95, weight_decay=0.1, clip=1.0),
    schedule=Cosine(peak=3e-4, warmup=0.0125, floor=3e-5),
    mesh=Mesh(data="rest", fsdp=16),
    batch_size=512,
    microbatches=4,
    steps=38_300,
    evaluate_every=1000,
    checkpoint_every=500,
    sample_every=5000,
    topology="v5p:4x4x8",
)
