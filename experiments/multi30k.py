"""English to German from scratch: Multi30k, 29,000 captions, by a small Transformer (2017) with its norms first.

    python run.py --config experiments/multi30k.py --data.source.path="('train.en', 'train.de')" \\
        --data.source.held_out.path="('val.en', 'val.de')"
    python run.py evaluate --model runs/multi30k --data test.en,test.de --beams 4

sacreBLEU on test_2016_flickr 34.2 greedily, 35.0 with four beams, after 25 minutes on two busy cores (5.5M parameters,
6 passes); 4,200 tokens of German a second where nothing else runs. One seed, nothing tuned but the step size's kind:
Muon's, as small.py has it, and not the paper's Adam. The curve is in benchmarks/RESULTS.md.
"""

from lmjax.data.records import Parallel
from lmjax.data.sources import OtherFiles
from lmjax.experiment import DataConfig, Experiment
from lmjax.models import zoo
from lmjax.models.feedforward import Dense
from lmjax.optim import Cosine, Muon
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
    optimizer=Muon(), schedule=Cosine(peak=0.02, warmup=0.03, floor=1e-4),
    batch_size=32, steps=1600, evaluate_every=200, checkpoint_every=400, sample_every=400, score_records=500,
)  # fmt: skip
