"""A small language model of Python source: the standard library that every interpreter brings.

    python run.py --config experiments/small.py

Expected: 1.73 bits per byte on the held-out files (gzip -9: 2.13, xz -9: 1.91), 113 to 130 seconds in all, caches cold,
on two cores (x86-64 with AVX-512, Python 3.11). Held out are 2 % of the files, 15 of them: from 3 % on, most of the
held-out bytes would be one generated file (pydoc_data/topics.py).
"""

from lmjax.data.sources import PythonLibrary, WholeDocuments
from lmjax.experiment import DataConfig, Experiment
from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Dense
from lmjax.models.norms import RMSNorm
from lmjax.models.positions import Rotary
from lmjax.optim import Linear, Muon
from lmjax.tokenizers import SentencePiece

experiment = Experiment(
    name="small",
    model=ModelConfig(
        layers=3,
        width=192,
        heads=6,
        context=128,
        qk_norm=True,
        bias=False,
        norm=RMSNorm(),
        positions=Rotary(),
        feedforward=Dense(activation="relu_squared", bias=False),
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
