"""LoRA (arXiv:2106.09685): a run of small.py, which has read Python source, adapted to another text.

    python run.py --config experiments/small.py
    python run.py --config experiments/lora.py --data.source.path=FILE

Expected, of tinyshakespeare (`python benchmarks/lora.py --base runs/small --text FILE --out DIR`, one seed, 200
steps, the best of four step sizes for each; 25 to 60 seconds a run on two busy cores), nats a held-out token; 5.753
before:

| trained | share | step sizes and losses | best | over full |
|---|---|---|---|---|
| all | 100 % | 0.005: 3.779, 0.01: 3.570, 0.02: 3.448, 0.04: 3.388 | 3.388 | |
| rank 2 | 1.55 % | 0.01: 4.335, 0.02: 4.246, 0.04: 4.207, 0.08: 4.967 | 4.207 | +24.2 % |
| rank 6 | 4.48 % | 0.01: 4.097, 0.02: 3.994, 0.04: 3.971, 0.08: 4.538 | 3.971 | +17.2 % |
| rank 24 | 17.66 % | 0.01: 3.783, 0.02: 3.657, 0.04: 3.709, 0.08: 3.923 | 3.657 | +7.9 % |

Under 5 % of the parameters were hoped to come within 3 % of full fine-tuning, and do not. The base has 1.7M
parameters and 280 steps of another language behind it, and full fine-tuning is nearly a training anew. Tried too, 200
steps each: rank 8 on all matrices of the blocks without the embedding by AdamW, 4.34; the embedding alone at rank 34,
4.13, or whole (23 %), 3.96.
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
