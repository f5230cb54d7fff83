"""A Llama-style model of 110M parameters on JSON lines: grouped keys, rotary positions, gated SiLU, documents apart.

    python run.py --config experiments/llama_small.py --data.source.path='data/*.jsonl.gz' --data.source.field=text

Meant for one GPU or a TPU host of 8 chips. Expected result: not yet measured.
"""

from lmjax.data.sources import JsonLines, WholeDocuments
from lmjax.experiment import DataConfig, Experiment
from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Gated
from lmjax.models.norms import RMSNorm
from lmjax.models.positions import Rotary
from lmjax.optim import AdamW, WarmupStableDecay
from lmjax.sharding import Mesh
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tokenizers import SentencePiece

experiment = Experiment(
    name="llama_small",
    model=ModelConfig(
        layers=12,
        width=768,
        heads=12,
        kv_heads=4,
        context=2048,
        positions=Rotary(theta=500_000.0),
        norm=RMSNorm(),
        feedforward=Gated(width=2048),
        bias=False,
        tied=True,
        dtype="bfloat16",
        remat="products",
    ),
    task=CausalLM(z_loss=1e-4),
    tokenizer=SentencePiece(vocab_size=32_000),
    data=DataConfig(source=JsonLines(path="data/*.jsonl.gz", held_out=WholeDocuments(share=0.001)), documents="apart"),
    optimizer=AdamW(b1=0.9, b2=0.95, weight_decay=0.1, clip=1.0),
    schedule=WarmupStableDecay(peak=6e-4, warmup=0.02, decay=0.2),
    mesh=Mesh(data=1, fsdp="rest"),
    batch_size=256,
    microbatches=8,
    steps=10_000,
    evaluate_every=500,
    checkpoint_every=500,
    sample_every=1000,
)
