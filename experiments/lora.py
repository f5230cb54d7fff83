"""LoRA (arXiv:2106.09685): a run of small.py, which has read Python source, adapted to another text.

python run.py --config experiments/small.py
python run.py --config experiments/lora.py --data.source.path=FILE
"""

from dataclasses import replace

from small import experiment as small

from lmjax.data.sources import TextFiles
from lmjax.experiment import DataConfig
from lmjax.models.lora import LoRA
from lmjax.optim import AdamW, Linear
from lmjax.tokenizers import SentencePiece

experiment = replace(
    small,
    name="lora",
    tokenizer=SentencePiece(path="runs/small/tokenizer/tokenizer.model"),
    data=DataConfig(source=TextFiles(path="tinyshakespeare.txt")),
    init_from="runs/small",
    adapter=LoRA(
        rank=8,
        alpha=16.0,
        weights=("blocks/*/kernel",),
    ),
    optimizer=AdamW(b2=0.95, weight_decay=0.0),
    schedule=Linear(peak=1e-2, warmup=0.02),
    steps=200,
    evaluate_every=100,
    checkpoint_every=200,
    sample_every=200,
)
