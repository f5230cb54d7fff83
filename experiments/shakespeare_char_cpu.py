"""nanoGPT's CPU recipe for tinyshakespeare by characters (train_shakespeare_char.py, the README's overrides).

python run.py --config experiments/shakespeare_char_cpu.py --data.source.path=FILE

Expected: a loss of 1.910 over the whole held-out tenth (other seeds: 1.903 to 1.916; nanoGPT, one run: 1.893), 141
seconds on two slow cores (14,000 tokens/s, x86-64 with AVX-512). The difference is the seed: the same recipe by
transformers' GPT-2 in PyTorch, windows at random places as nanoGPT draws them, gave 1.905, 1.905 and 1.921 with
three seeds.
"""

from lmjax.data.sources import TextFiles
from lmjax.experiment import DataConfig, Experiment
from lmjax.models import zoo
from lmjax.optim import AdamW, Cosine
from lmjax.tokenizers import Characters

experiment = Experiment(
    name="shakespeare_char_cpu",
    seed=1337,
    model=zoo.nanogpt(layers=4, heads=4, width=128, context=64, unroll=4),
    tokenizer=Characters(),
    data=DataConfig(source=TextFiles(path="tinyshakespeare.txt")),
    optimizer=AdamW(b1=0.9, b2=0.99, weight_decay=0.1, clip=1.0),
    schedule=Cosine(peak=1e-3, warmup=0.05, floor=1e-4),
    batch_size=12,
    steps=2000,
    evaluate_every=500,
    checkpoint_every=1000,
    sample_every=2000,
)
