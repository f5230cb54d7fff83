"""A small mixture of experts of Python source: eight experts in each layer, of which a token uses two.

    python run.py --config experiments/moe_small.py

The text, the tokenizer and the optimizer are those of small.py.

Expected: 1.71 bits per byte on the held-out files (small.py: 1.73, gzip -9: 2.13, xz -9: 1.91). It took 262 seconds in
all, caches cold, on two cores (x86-64 with AVX-512, Python 3.11) that others were using too, and 163 seconds of
processor time. Balance 1.03 and 4 % of the assignments dropped at step 140. `--mesh.expert=8` lays an expert on each
of eight devices, simulated ones with XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

from lmjax.data.sources import PythonLibrary, WholeDocuments
from lmjax.experiment import DataConfig, Experiment
from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Experts
from lmjax.models.norms import RMSNorm
from lmjax.models.positions import Rotary
from lmjax.optim import Linear, Muon
from lmjax.tokenizers import SentencePiece

experiment = Experiment(
    name="moe_small",
    model=ModelConfig(
        layers=3,
        width=192,
        heads=6,
        context=128,
        qk_norm=True,
        bias=False,
        norm=RMSNorm(),
        positions=Rotary(),
        feedforward=Experts(count=8, chosen=2, width=128, capacity=1.25),
        unroll=3,
    ),
    tokenizer=SentencePiece(vocab_size=2048),
    data=DataConfig(source=PythonLibrary(held_out=WholeDocuments(share=0.02))),
    optimizer=Muon(),
    schedule=Linear(peak=0.02, warmup=0.02, floor=0.0002),
    batch_size=16,
    steps=280,
    evaluate_every=140,
    checkpoint_every=140,
    sample_every=280,
)
