"""wip"""

from dataclasses import replace

from qa_first import experiment as qa_first
from qa_first import stories

from lmjax.data.mixture import Mixture, Weighted
from lmjax.data.records import Squad
from lmjax.data.sources import OtherFiles
from lmjax.experiment import DataConfig
from lmjax.optim import Linear
from lmjax.tokenizers import SentencePiece

train = Squad(path="stories/train.json", held_out=OtherFiles(path="stories/dev.json"))

experiment = replace(
    qa_first,
    name="qa",
    tokenizer=SentencePiece(path="runs/qa_first/tokenizer/tokenizer.model"),
    data=DataConfig(
        source=Mixture(parts=(Weighted(source=train, weight=2), Weighted(source=stories("short")))),
        length=128,
    ),
    init_from="runs/qa_first",
    schedule=Linear(peak=0.006, warmup=0.02, floor=0.0001),
    batch_size=24,
    steps=2600,
    evaluate_every=400,
    checkpoint_every=400,
    score_records=400,
)
