"""Run in a process of its own, for a directory: train steps compiled for TPU, each one's text and its figures."""

import dataclasses
import json
import sys
from dataclasses import replace
from pathlib import Path

from lmjax.data.sources import TextFiles
from lmjax.experiment import DataConfig, Experiment
from lmjax.models.attention import Reference
from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Gated
from lmjax.models.norms import RMSNorm
from lmjax.models.positions import Rotary
from lmjax.plan.devices import topology_of
from lmjax.plan.memory import temporaries
from lmjax.plan.planning import plan
from lmjax.planning_verb import want_no_accelerator
from lmjax.sharding import Mesh
from lmjax.tokenizers import Bytes

# no two sides alike, so that a side says what it counts; layers enough that what is kept of them is most of the memory
GPT = ModelConfig(layers=12, width=1024, heads=8, context=2560, vocab=16_000, dtype="bfloat16")
SMALL = ModelConfig(layers=2, width=512, heads=4, context=1280, vocab=2000, dtype="bfloat16", kernel=Reference())
LLAMA = replace(
    GPT, kv_heads=4, positions=Rotary(), norm=RMSNorm(), feedforward=Gated(width=2816), bias=False, tied=False
)
FSDP, MIXED = Mesh(data=1, fsdp=4), Mesh(data=1, fsdp=2, tensor=2)


def experiment(model: ModelConfig, mesh: Mesh, documents: str = "joined", **changes) -> Experiment:
    data = DataConfig(source=TextFiles(path="*.txt"), documents=documents)
    return replace(
        Experiment(name="pod", model=model, tokenizer=Bytes(), data=data, mesh=mesh, batch_size=64), **changes
    )


EXPERIMENTS = {
    "gpt products": experiment(replace(GPT, remat="products"), FSDP),
    "gpt everything": experiment(replace(GPT, remat="everything", layers=40), FSDP, batch_size=128, microbatches=2),
    "llama attention": experiment(replace(LLAMA, remat="attention", layers=24), MIXED, "apart"),
    "llama nothing": experiment(replace(LLAMA, remat="nothing"), FSDP, "apart"),
    "the formula of attention": experiment(SMALL, FSDP, batch_size=4),
}


def main(folder: Path, names: list[str]):
    want_no_accelerator()
    figures = {}
    for name in names or EXPERIMENTS:
        made = plan(EXPERIMENTS[name], topology_of("v5p:2x2x1"))
        (folder / f"{name}.txt").write_text(made.program.as_text())
        wanted = temporaries(made.experiment, made.mesh, made.size.trained)
        figures[name] = {
            "arguments": made.figures.arguments, "temporaries": made.figures.temporaries,
            "wanted": dataclasses.asdict(wanted), "total": wanted.total, "seconds": made.figures.seconds,
        }  # fmt: skip
    (folder / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
