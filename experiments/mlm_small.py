"""A small BERT (arXiv:1810.04805) of Python source: tokens of the standard library's files, hidden and told.

python run.py --config experiments/mlm_small.py
"""

from lmjax.data.sources import PythonLibrary, WholeDocuments
from lmjax.experiment import DataConfig, Experiment
from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Dense
from lmjax.models.norms import RMSNorm
from lmjax.models.positions import Rotary
from lmjax.optim import Linear, Muon
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tokenizers import SentencePiece

experiment = Experiment(
    name="mlm_small",
    model=ModelConfig(
        layers=3,
        width=192,
        heads=6,
        context=128,
        causal=False,
        qk_norm=True,
        bias=False,
        norm=RMSNorm(),
        positions=Rotary(),
        feedforward=Dense(activation="relu_squared", bias=False),
        masked_head="gelu",
        unroll=3,
        dtype="bfloat16",
    ),
    task=MaskedLM(),
    tokenizer=SentencePiece(vocab_size=2048, mask=True),
    data=DataConfig(source=PythonLibrary(held_out=WholeDocuments(share=0.25))),
    optimizer=Muon(),
    schedule=Linear(peak=0.02, warmup=0.02, floor=0.0002),
    batch_size=16,
    steps=1500,
    evaluate_every=750,
    checkpoint_every=750,
    sample_every=750,
)
