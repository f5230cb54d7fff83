"""wip"""

from dataclasses import replace

from qa_first import experiment as qa_first
from qa_first import stories

from lmjax.data.mixture import Mixture, Weighted
from lmjax.optim import Linear
from lmjax.tokenizers import SentencePiece

experiment = replace(
    qa_first,
    name="qa_short",
    tokenizer=SentencePiece(path="runs/qa_first/tokenizer/tokenizer.model"),
    data=replace(
        qa_first.data,
        source=Mixture(parts=(Weighted(source=stories("first")), Weighted(source=stories("short"), weight=4))),
    ),
    init_from="runs/qa_first",
    schedule=Linear(peak=0.005, warmup=0.02, floor=0.003),
    steps=2500,
    evaluate_every=500,
    checkpoint_every=500,
)
