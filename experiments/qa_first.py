"""Where two facts find each other, before qa.py: stories of four short sentences, and names of one piece.

    python benchmarks/qa_stories.py --out stories
    python run.py --config experiments/qa_first.py
    python run.py --config experiments/qa.py

Expected: between steps 250 and 400 the loss falls from 0.5 to 0.15, as two facts are joined; a guess has 0.5. Exact
match on held-out stories of first.json 0.68, 0.98, 0.99, 0.99 at steps 250, 500, 750, 1,000; 2.6 minutes on two shared
cores (load 6), reading included; one seed. It hangs on `equal_keys`, on names of one piece, on questions that need the
join for the place of their answer alone, and on little else being in the batches: with a fifth of short.json there was
no join after 1,100 steps (benchmarks/RESULTS.md). One row in 31 is of short.json, so that the tokenizer has read all
words that follow.
"""

from lmjax.data.mixture import Mixture, Weighted
from lmjax.data.records import Squad
from lmjax.data.sources import WholeDocuments
from lmjax.experiment import DataConfig, Experiment
from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Dense
from lmjax.models.norms import RMSNorm
from lmjax.models.positions import Rotary
from lmjax.optim import Linear, Muon
from lmjax.tasks.span_qa import SpanQA
from lmjax.tokenizers import SentencePiece


def stories(name: str) -> Squad:
    return Squad(path=f"stories/{name}.json", held_out=WholeDocuments(share=0.005))


experiment = Experiment(
    name="qa_first",
    model=ModelConfig(
        layers=4, width=64, heads=4, context=256, causal=False, positions=Rotary(fraction=0.25),
        norm=RMSNorm(), qk_norm=True, equal_keys=True, bias=False,
        feedforward=Dense(width=128, activation="relu_squared", bias=False), token_types=3, init_std=0.1, unroll=4,
    ),
    task=SpanQA(longest_answer=12, mark_shared=True),
    tokenizer=SentencePiece(vocab_size=1100),
    data=DataConfig(
        source=Mixture(parts=(Weighted(source=stories("first"), weight=30), Weighted(source=stories("short")))),
        length=96,
    ),
    optimizer=Muon(beta=0.9, adam_scale=0.1), schedule=Linear(peak=0.006, warmup=0.02, floor=0.004),
    batch_size=24, steps=1000, evaluate_every=250, checkpoint_every=250, sample_every=1000, score_records=300,
)  # fmt: skip
