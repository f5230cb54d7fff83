"""GPT-2 124M on your own text files, with nanoGPT's settings for OpenWebText.

    python run.py --config experiments/gpt2_124m.py --data.source.path='openwebtext/*.txt' --tokenizer.path=gpt2/

`gpt2/` holds vocab.json and merges.txt. Expected: nanoGPT reports a held-out loss of about 2.85 after 600,000 steps of
491,520 tokens, four days on 8 x A100 40 GB; with lmjax not yet measured.
"""

from lmjax.data.sources import TextFiles, WholeDocuments
from lmjax.experiment import DataConfig, Experiment, Sampling
from lmjax.models import zoo
from lmjax.optim import AdamW, Cosine
from lmjax.sharding import Mesh
from lmjax.tokenizers import HuggingFace

experiment = Experiment(
    name="gpt2_124m",
    seed=1337,
    model=zoo.gpt2("small", dtype="bfloat16", remat="products"),
    tokenizer=HuggingFace(path="gpt2/", eos="<|endoftext|>"),
    data=DataConfig(source=TextFiles(path="openwebtext/*.txt", held_out=WholeDocuments(share=0.0005))),
    optimizer=AdamW(b1=0.9, b2=0.95, weight_decay=0.1, clip=1.0),
    schedule=Cosine(peak=6e-4, warmup=0.0033, floor=6e-5),
    mesh=Mesh(data=1, fsdp="rest"),
    batch_size=480,
    microbatches=5,
    steps=600_000,
    evaluate_every=1000,
    checkpoint_every=1000,
    sample_every=5000,
    sampling=Sampling(prompt="\n"),
)
