"""nanoGPT's GPU recipe for tinyshakespeare by characters (config/train_shakespeare_char.py).

    python run.py --config experiments/shakespeare_char.py --data.source.path=FILE

Expected: nanoGPT reports a best held-out loss of 1.4697 on random windows, about three minutes on one A100; it
overfits, so the best checkpoint counts: `evaluate --step best`. With lmjax not yet measured.
"""

from lmjax.data.sources import TextFiles
from lmjax.experiment import DataConfig, Experiment, Sampling
from lmjax.models import zoo
from lmjax.optim import AdamW, Cosine
from lmjax.tokenizers import Characters

experiment = Experiment(
    name="shakespeare_char",
    seed=1337,
    model=zoo.nanogpt(layers=6, heads=6, width=384, context=256, dropout=0.2),
    tokenizer=Characters(),
    data=DataConfig(source=TextFiles(path="tinyshakespeare.txt")),
    optimizer=AdamW(b1=0.9, b2=0.99, weight_decay=0.1, clip=1.0),
    schedule=Cosine(peak=1e-3, warmup=0.02, floor=1e-4),
    batch_size=64,
    steps=5000,
    evaluate_every=250,
    checkpoint_every=500,
    sample_every=2500,
    sampling=Sampling(prompt="\n"),
)
