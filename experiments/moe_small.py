"""A small mixture of experts of Python source: eight experts in each layer, of which a token uses two.

    python run.py --config experiments/moe_small.py

The text, the tokenizer and the optimizer are those of small.py.
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
