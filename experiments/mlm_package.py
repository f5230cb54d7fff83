"""Which package of the standard library a file is of, told from its first 64 tokens by the run of mlm_small.py.

    python run.py --config experiments/mlm_small.py
    python run.py --config experiments/mlm_package.py

Expected (`python benchmarks/masked.py --base runs/mlm_small --out DIR`; accuracy on 124 held-out files, 358 to learn
from; three seeds, each way with the best of the same four settings of the optimizer by the first seed):

| | by seed | mean | standard error |
|---|---|---|---|
| from runs/mlm_small | 0.911, 0.887, 0.903 | 0.901 | 0.007 |
| from scratch (`--init_from=none`) | 0.847, 0.887, 0.871 | 0.868 | 0.012 |

2.4 standard errors of the difference apart. 35 to 60 seconds a run on one core that others used too. One seed of other
lengths: of the first 32 tokens 0.863 and 0.815, of the first 128 tokens 0.927 and 0.895.
"""

from dataclasses import replace

from mlm_small import experiment as mlm_small

from lmjax.data.sources import PythonLibrary
from lmjax.experiment import DataConfig
from lmjax.optim import Linear, Muon
from lmjax.tasks.classification import Classification
from lmjax.tokenizers import SentencePiece

# all that have more than a dozen files
PACKAGES = (
    "asyncio", "distutils", "email", "encodings", "idlelib", "importlib", "lib2to3", "multiprocessing", "tkinter",
    "turtledemo", "unittest", "xml",
)  # fmt: skip

experiment = replace(
    mlm_small,
    name="mlm_package",
    model=replace(mlm_small.model, masked_head=None, dropout=0.1),
    task=Classification(label="package", too_long="cut", pooling="mean"),
    tokenizer=SentencePiece(path="runs/mlm_small/tokenizer/tokenizer.model", mask=True),
    # the files that mlm_small.py holds out are held out here too: neither run has read them
    data=DataConfig(source=PythonLibrary(packages=PACKAGES, held_out=mlm_small.data.source.held_out), length=64),
    init_from="runs/mlm_small",
    # the new layer is AdamW's, and far from where it will be; the embedding too
    optimizer=Muon(adam_scale=0.6),
    schedule=Linear(peak=0.01, warmup=0.1),
    batch_size=32,
    steps=100,
    evaluate_every=25,
    checkpoint_every=100,
    sample_every=100,
)
