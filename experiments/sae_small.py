"""A sparse autoencoder (arXiv:2309.08600) of the residual stream of a run of small.py, behind its second layer of
three: 1,536 features for 192 dimensions.

    python run.py --config experiments/small.py
    python run.py --config experiments/sae_small.py
    python run.py evaluate --model runs/sae_small

Expected, on the held-out files of small.py (one seed, two busy cores, four to nine minutes a run; the model alone has
3.630 nats a token, with 0 at the site 7.625):

| setting | steps | variance explained | active features a token | dead | nats with the reconstruction | recovered |
|---|---|---|---|---|---|---|
| --task.l1=1 | 300 | 0.912 | 100.4 | 0.1 % | 3.711 | 98.0 % |
| --task.l1=3 | 300 | 0.776 | 21.5 | 8.5 % | 3.887 | 93.6 % |
| --task.l1=0 --model.autoencoder.k=32 | 100 | 0.907 | 32.0 | 1.7 % | 3.707 | 98.1 % |
| --task.l1=0 --model.autoencoder.k=32 | 300 | 0.928 | 32.0 | 2.0 % | 3.685 | 98.6 % |

The 32 most active ones explain more than a hundred that a penalty has made few. What a feature stands for,
`lmjax.interpret.contexts` shows: of the run with l1=3 the most active ones are pieces of words ("st" in static,
abstract, abstracts) and of Python (`if` at the begin of a line, "(" behind a name).
"""

from dataclasses import replace

from small import experiment as small

from lmjax.models.autoencoder import Autoencoder
from lmjax.optim import AdamW, Linear
from lmjax.tasks.sparse_autoencoder import SparseAutoencoder

experiment = replace(
    small,
    name="sae_small",
    init_from="runs/small",
    model=replace(small.model, autoencoder=Autoencoder(site="blocks.1.hook_resid_post", features=1536)),
    task=SparseAutoencoder(l1=1.0),
    optimizer=AdamW(weight_decay=0.0),
    schedule=Linear(peak=0.003, warmup=0.05),
    steps=300,
    evaluate_every=100,
    checkpoint_every=100,
    sample_every=300,
)
