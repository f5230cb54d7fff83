"""Questions about short stories, answered by a piece of the story; half of them need two facts.

python benchmarks/qa_stories.py --out stories
python run.py --config experiments/qa.py
python run.py evaluate --model runs/qa --step best --data stories/test.json
python benchmarks/qa_stories.py --out stories --model runs/qa       # by template, beside the baselines
"""

from lmjax.data.records import Squad
from lmjax.data.sources import OtherFiles
from lmjax.experiment import DataConfig, Experiment
from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Dense
from lmjax.models.norms import RMSNorm
from lmjax.models.positions import Rotary
from lmjax.optim import Linear, Muon
from lmjax.tasks.span_qa import SpanQA
from lmjax.tokenizers import SentencePiece

experiment = Experiment(
    name="qa",
    model=ModelConfig(
        layers=4, width=128, heads=4, context=256, causal=False, positions=Rotary(fraction=0.5), norm=RMSNorm(),
        qk_norm=True, bias=False, feedforward=Dense(activation="relu_squared", bias=False), token_types=3,
        init_std=0.1, unroll=4,
    ),
    task=SpanQA(longest_answer=12, mark_shared=True),
    tokenizer=SentencePiece(vocab_size=2048),
    data=DataConfig(source=Squad(path="stories/train.json", held_out=OtherFiles(path="stories/dev.json")), length=192),
    optimizer=Muon(beta=0.9, adam_scale=0.1), schedule=Linear(peak=0.014, warmup=0.02, floor=0.00014),
    batch_size=8, steps=3000, evaluate_every=500, checkpoint_every=500, sample_every=1000, score_records=500,
)  # fmt: skip
