"""wip"""

from dataclasses import replace

from qa_first import experiment as qa_first

from lmjax.data.mixture import Mixture, Weighted
from lmjax.data.records import Squad
from lmjax.data.sources import OtherFiles, WholeDocuments
from lmjax.experiment import DataConfig
from lmjax.optim import Linear
from lmjax.tokenizers import SentencePiece


short = Squad(path="stories/short.json", held_out=WholeDocuments(share=0.002))
train = Squad(path="stories/train.json", held_out=OtherFiles(path="stories/dev.json"))

experiment = replace(
    qa_first,
    name="qa",
    tokenizer=SentencePiece(path="runs/qa_first/tokenizer/tokenizer.model"),
    data=DataConfig(
        source=Mixture(parts=(Weighted(source=short), Weighted(source=train, weight=3))),
        length=192,
    ),
    init_from="runs/qa_first",
    schedule=Linear(peak=0.005, warmup=0.02, floor=0.0001),
    batch_size=16,
    steps=2500,
    score_records=500,
)
