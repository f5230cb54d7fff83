"""Questions about short stories, answered by a piece of the story; half of them need two facts.

python benchmarks/qa_stories.py --out stories
python run.py --config experiments/qa_first.py
python run.py --config experiments/qa.py
python run.py --config experiments/qa.py --steps=12000
python run.py evaluate --model runs/qa --step best --data stories/test.json
python benchmarks/qa_stories.py --out stories --model runs/qa       # by template, beside the baselines

After 12,000 steps 95.7 % exact match on test.json, whose names are in no story of training: 95.9 % where one fact is
enough and 95.3 % where it takes two; one seed. Baselines that do not read stay under 16 %. After the first 8,000 steps
93.7 % (94.9 and 92.2); on 400 questions of dev.json 0.64, 0.81, 0.86, 0.89, 0.92, 0.93, 0.94, 0.94 at every thousandth
of these, and 0.95, 0.93, 0.94, 0.95 of the others, for which the step size begins again at a third of the peak. 37
million tokens, 37 minutes at 20,000 tokens/s on one core of two that others used too. On real.json, whose names are cut
into pieces that training hardly saw, 17.3 %; on XQuAD (English) exact match 0.1 %, F1 2.2 %. What joins two facts:
qa_first.py. Stories and names are simpler than those of which 73.4 % were right before, without a join (47 %).
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
    steps=8000,
    evaluate_every=1000,
    checkpoint_every=1000,
    score_records=400,
)
