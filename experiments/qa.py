"""Questions about short stories, answered by a piece of the story; half of them need two facts.

python benchmarks/qa_stories.py --out stories
python run.py --config experiments/qa_first.py
python run.py --config experiments/qa.py
python run.py evaluate --model runs/qa --step best --data stories/test.json
python benchmarks/qa_stories.py --out stories --model runs/qa       # by template, beside the baselines

The aim, 95 % exact match on stories with unseen names, is not reached: after 2,600 steps (11 minutes on two cores that
others used too, load 6 to 13, reading included) 85.7 % on test.json, 89.8 % where one fact is enough and 80.6 % where
it takes two; one seed. Baselines that do not read stay under 16 %. On real.json, whose names are cut into pieces that
training hardly saw, 14.2 % (14.5 and 14.0); on XQuAD (English) exact match 0.2 %, F1 1.3 %. On 400 questions of
dev.json exact match was 0.50, 0.60, 0.69, 0.78, 0.80 at steps 400 to 2,000 and 0.85 at the last, when the step size had
fallen to nothing: a longer run is the next thing to try. Stories and names are simpler than those of which 73.4 % were
right before (no join of two facts: 47 %). What joins them: qa_first.py.
"""

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
