"""A sparse autoencoder of the residual stream of a run of small.py, behind its second layer.

python run.py --config experiments/small.py
python run.py --config experiments/sae_small.py
python run.py evaluate --model runs/sae_small
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
    schedule=Linear(peak=0.003, warmup=0.05, floor=0.0),
    steps=300,
    evaluate_every=100,
    checkpoint_every=100,
    sample_every=300,
)
