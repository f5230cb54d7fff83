"""The best recipe found for tinyshakespeare by characters in 85 seconds on two CPU cores.

python run.py --config experiments/shakespeare_char_fast.py --data.source.path=FILE
"""

from lmjax.data.sources import TextFiles
from lmjax.experiment import DataConfig, Experiment
from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Dense
from lmjax.models.norms import RMSNorm
from lmjax.models.positions import Rotary
from lmjax.optim import Linear, Muon
from lmjax.tokenizers import Characters

experiment = Experiment(
    name="shakespeare_char_fast",
    model=ModelConfig(
        layers=4,
        width=128,
        heads=4,
        context=128,
        positions=Rotary(),
        norm=RMSNorm(),
        qk_norm=True,
        bias=False,
        feedforward=Dense(activation="relu_squared", bias=False),
        unroll=4,
    ),
    tokenizer=Characters(),
    data=DataConfig(source=TextFiles(path="tinyshakespeare.txt")),
    optimizer=Muon(),
    schedule=Linear(peak=0.02, warmup=0.02, floor=0.0002),
    batch_size=4,
    steps=1900,
    evaluate_every=475,
    checkpoint_every=950,
    sample_every=1900,
)
