"""Sentiment of film reviews from scratch: SST-2 as tables of sentence and label.

    python run.py --config experiments/sst2.py --data.source.path=train.tsv --data.source.held_out.path=dev.tsv
    python run.py evaluate --model runs/sst2 --step best --data test.tsv

Test accuracy 79.2, 80.1 and 79.6 % with seeds 0 to 2 (dev: 80.4, 79.6, 80.2 %), 46 to 71 s a run on two
busy cores. TF-IDF with logistic regression has 81.1 %, which this does not reach: `benchmarks/sentiment.py`. All was
chosen on dev.
"""

from lmjax.data.records import Table
from lmjax.data.sources import OtherFiles
from lmjax.experiment import DataConfig, Experiment
from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Dense
from lmjax.models.norms import LayerNorm
from lmjax.models.positions import Learned
from lmjax.optim import AdamW, Cosine
from lmjax.tasks.classification import Classification
from lmjax.tokenizers import SentencePiece

experiment = Experiment(
    name="sst2",
    model=ModelConfig(
        # with an epsilon this large a norm leaves words that say much their longer vectors, which the mean then hears
        layers=1, width=64, heads=4, context=96, causal=False, positions=Learned(), norm=LayerNorm(epsilon=1.0),
        feedforward=Dense(width=256, activation="gelu"), dropout=0.5, init_std=0.05,
    ),
    task=Classification(pooling="mean", token_dropout=0.5),
    tokenizer=SentencePiece(vocab_size=14_000, algorithm="unigram"),
    data=DataConfig(source=Table(path="train.tsv", columns=("text", "label"), held_out=OtherFiles(path="dev.tsv"))),
    optimizer=AdamW(b2=0.98, weight_decay=0.1), schedule=Cosine(peak=1e-2, warmup=0.1, floor=1e-5),
    batch_size=64, steps=250, evaluate_every=25, checkpoint_every=25, sample_every=250,
)  # fmt: skip
