"""GPT-3 Small, 125M (arXiv:2005.14165, tables 2.1 and D.1), on your own text files; seven other sizes derive from it.

    python run.py plan --config experiments/gpt3_125m.py --topology v5e:2x4

300 billion tokens, Adam with decay 0.1 and clipping at 1.0, warm-up over 375 million tokens, cosine down to a tenth
over 260 billion (appendix B). Not the paper's: attention is dense in all layers (the width of its bands is not
published), the batch has its full size from the start, and the text is yours. Result: not measured; what it needs,
`plan` says.
"""

from lmjax.data.sources import TextFiles, WholeDocuments
from lmjax.experiment import DataConfig, Experiment, Sampling
from lmjax.models import zoo
from lmjax.optim import AdamW, Cosine
from lmjax.sharding import Mesh
from lmjax.tokenizers import HuggingFace

experiment = Experiment(
    name="gpt3_125m",
    model=zoo.gpt3("small", dtype="bfloat16", remat="products"),
    tokenizer=HuggingFace(path="gpt2/", eos="<|endoftext|>"),
    data=DataConfig(source=TextFiles(path="text/*.txt", held_out=WholeDocuments(share=0.0005))),
    optimizer=AdamW(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0),
    schedule=Cosine(peak=6e-4, warmup=375e6 / 300e9, share=260e9 / 300e9, floor=6e-5),
    mesh=Mesh(data="rest", fsdp=2),
    batch_size=256,
    microbatches=4,
    steps=572_205,
    evaluate_every=1000,
    checkpoint_every=1000,
    sample_every=5000,
    sampling=Sampling(prompt="\n"),
    topology="v5e:2x4",
)
