"""English to German by the Transformer (2017), from scratch: Multi30k, 29,000 captions of pictures."""

from lmjax.data.records import Parallel
from lmjax.data.sources import OtherFiles
from lmjax.experiment import DataConfig, Experiment
from lmjax.models import zoo
from lmjax.models.feedforward import Dense
from lmjax.optim import AdamW, InverseSquareRoot
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.tokenizers import SentencePiece

experiment = Experiment(
    name="multi30k",
    model=zoo.transformer_2017(
        "base", layers=3, encoder_layers=3, width=256, heads=4, context=128, vocab=None, dropout=0.2,
        feedforward=Dense(width=512, activation="relu"), norm_first=True, init_std=256**-0.5,
    ),
    task=Seq2Seq(label_smoothing=0.1, too_long="drop"),
    tokenizer=SentencePiece(vocab_size=6000, algorithm="unigram"),
    data=DataConfig(
        source=Parallel(path=("train.en", "train.de"), held_out=OtherFiles(path=("val.en", "val.de"))), length=64,
    ),
    optimizer=AdamW(b2=0.98, eps=1e-9, weight_decay=0.0), schedule=InverseSquareRoot(peak=1e-3, warmup=0.1),
    batch_size=32, steps=6000, evaluate_every=500, checkpoint_every=500, sample_every=500, score_records=1014,
)  # fmt: skip
