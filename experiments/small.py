"""A small language model of Python source: the standard library that every interpreter brings."""

from lmjax.experiment import DataConfig, Experiment
from lmjax.data.sources import PythonLibrary
from lmjax.models import zoo
from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Dense
from lmjax.models.norms import RMSNorm
from lmjax.models.positions import Rotary
from lmjax.optim import Cosine, Muon, WarmupStableDecay
from lmjax.tokenizers import SentencePiece

experiment = Experiment(
    name="small",
    model=ModelConfig(
        layers=3, width=192, heads=6, context=128, qk_norm=True, bias=False, norm=RMSNorm(), positions=Rotary(),
        feedforward=Dense(activation="relu_squared", bias=False), unroll=3,
    ),
    tokenizer=SentencePiece(vocab_size=4096),
    data=DataConfig(source=PythonLibrary()),
    optimizer=Muon(),
    schedule=Linear(peak=0.02, warmup=0.05, floor=0.0) if False else WarmupStableDecay(peak=0.02, warmup=0.02, decay=0.5, floor=0.001),
    batch_size=16,
    steps=600,
    evaluate_every=300,
    checkpoint_every=200,
    sample_every=600,
)
