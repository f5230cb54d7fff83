"""LoRA (arXiv:2106.09685): a run of small.py, which has read Python source, adapted to another text.

python run.py --config experiments/small.py
python run.py --config experiments/lora.py --data.source.path=FILE
"""

from dataclasses import replace

from small import experiment as small

from lmjax.data.sources import TextFiles
from lmjax.experiment import DataConfig
from lmjax.models.lora import LoRA
from lmjax.optim import Linear
from lmjax.tokenizers import SentencePiece

experiment = replace(
    small,
    name="lora",
    tokenizer=SentencePiece(path="runs/small/tokenizer/tokenizer.model"),
    data=DataConfig(source=TextFiles(path="tinyshakespeare.txt")),
    init_from="runs/small",
    # of every matrix, the tied embedding among them, and the scales of the norms as they are
    adapter=LoRA(rank=6, alpha=6.0, weights=("blocks/*/kernel", "embedding"), train=("*/scale",)),
    schedule=Linear(peak=0.04, warmup=0.02),
    steps=200,
    evaluate_every=100,
    checkpoint_every=200,
    sample_every=200,
)
