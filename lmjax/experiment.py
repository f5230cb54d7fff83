"""An experiment: one frozen value that says everything about a run."""

import runpy
import sys
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lmjax import configs
from lmjax.data.mixture import AnySource
from lmjax.data.sources import PythonLibrary
from lmjax.errors import UserError, path_text
from lmjax.models.config import ModelConfig
from lmjax.models.lora import LoRA
from lmjax.optim import AdamW, AnySchedule, Cosine, Optimizer, check
from lmjax.sharding import Mesh
from lmjax.tasks.any_task import AnyTask
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.preferences import Preferences
from lmjax.tasks.sparse_autoencoder import SparseAutoencoder
from lmjax.tokenizers import SentencePiece, TokenizerConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """documents: "joined" lets attention run across documents within a window, "apart" keeps it inside each; examples
    of a task are always apart. length: tokens of a row; None: the model's context. source_length: of a row that an
    encoder reads; None: as length."""

    source: AnySource = PythonLibrary()
    documents: Literal["joined", "apart"] = "joined"
    length: int | None = None
    source_length: int | None = None

    def __post_init__(self):
        for name in ("length", "source_length"):
            if getattr(self, name) is not None and getattr(self, name) < 2:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 2 or more")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The text that a run generates along the way, and at its end."""

    prompt: str = ""
    max_new_tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = 200

    def __post_init__(self):
        if self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected 0 or more")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; expected 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; expected a positive number")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """name: of the run directory. topology: the devices that it is meant for, as `plan --topology` names them.
    batch_size: windows a step, over all devices. microbatches: parts that a batch is
    taken in, one after another, to save memory. evaluate_every, checkpoint_every, sample_every: in steps; each also
    happens at the last step. score_records: of how many held-out records an evaluation has the task's own figures too,
    such as BLEU of what is generated. keep_checkpoints: how many of the newest stay, beside the best. init_from: a run
    or a Hugging Face directory whose parameters training starts with; its model must be this one. freeze: patterns of
    paths of parameters, such as "embedding" or "blocks/attention/*", that stay as they are. adapter: what is trained
    in place of the model that init_from names, which a run with an adapter goes on needing. optimizer_memory: where
    the optimizer's state lies between updates, on the device or, pinned, on the host, which costs its way there and
    back at every step (ZeRO-Offload, arXiv:2101.06840, section 3)."""

    name: str
    model: ModelConfig
    seed: int = 0
    task: AnyTask = CausalLM()
    tokenizer: TokenizerConfig = SentencePiece()
    data: DataConfig = DataConfig()
    optimizer: Optimizer = AdamW()
    schedule: AnySchedule = Cosine(peak=1e-3, warmup=0.02, floor=1e-4)
    optimizer_memory: Literal["device", "host"] = "device"
    mesh: Mesh = Mesh()
    batch_size: int = 32
    microbatches: int = 1
    steps: int = 1000
    evaluate_every: int = 250
    checkpoint_every: int = 250
    sample_every: int = 1000
    score_records: int = 0
    keep_checkpoints: int = 2
    init_from: str | None = None
    freeze: tuple[str, ...] = ()
    adapter: LoRA | None = None
    sampling: Sampling = Sampling()
    topology: str | None = None

    def __post_init__(self):
        for name in (
            "batch_size", "microbatches", "steps", "evaluate_every", "checkpoint_every", "sample_every",
            "keep_checkpoints",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive number")
        if self.score_records < 0 or (self.score_records and not self.task.on_records):
            raise ValueError(f"score_records is {self.score_records}; expected 0, or more for a task on records")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed is {self.seed}; expected a number from 0 to 2**31 - 1")
        if not self.name or Path(self.name).name != self.name:
            raise ValueError(f"name is {self.name!r}; expected a name for a directory, without slashes")
        if self.batch_size % self.microbatches:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of microbatches {self.microbatches}")
        for name in ("length", "source_length"):
            if (getattr(self.data, name) or 0) > self.model.context:
                raise ValueError(
                    f"data.{name} {getattr(self.data, name)} is more than model.context {self.model.context}"
                )
        self.task.check(self.model_of_rows)
        check(self.optimizer)
        if isinstance(self.task, Preferences) and self.init_from is None:
            raise ValueError("task Preferences needs init_from, the model that its answers are compared with")
        if isinstance(self.task, SparseAutoencoder) and self.init_from is None:
            raise ValueError("task SparseAutoencoder needs init_from, the model in which it reads a site")
        if isinstance(self.task, SparseAutoencoder) != (self.model.autoencoder is not None):
            raise ValueError("task SparseAutoencoder and model.autoencoder: expected both, or neither")
        if self.adapter is not None and self.init_from is None:
            raise ValueError("adapter needs init_from, the model that is adapted")
        if self.adapter is not None and self.freeze:
            raise ValueError("freeze: with an adapter all but it is frozen; adapter.train says what is not")

    @property
    def needs_base(self) -> bool:
        """Whether some verbs go on needing the model that init_from names."""
        return self.adapter is not None or isinstance(self.task, Preferences)

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.data.length or self.model.context

    @property
    def source_length(self) -> int:
        """Tokens of a row that an encoder reads."""
        return self.data.source_length or self.length

    @property
    def model_of_rows(self) -> ModelConfig:
        """The model with the length of its rows as its context: what the work and memory of a step follow from."""
        return replace(self.model, context=self.length)

    @property
    def apart(self) -> bool:
        """Whether attention stays inside each document or example."""
        return self.task.on_records or self.data.documents == "apart"

    @property
    def segmented(self) -> bool:
        """Whether batches say which places see one another: apart, or where padding would be seen, which a model that
        looks ahead does."""
        return self.apart or self.task.ahead == 0

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.length

    @property
    def tokens(self) -> int:
        """Tokens read over the whole run."""
        return self.steps * self.tokens_per_step

    def loss_chunk(self) -> int:
        """How many places of a row have their loss computed at one time, on the mesh in use."""
        chunk = self.task.chunk(self.microbatch_size, self.length, self.model.vocab)
        return self.length if chunk is None else min(chunk, self.length)

    @property
    def microbatch_size(self) -> int:
        """Rows that are computed at one time, over all devices."""
        return self.batch_size // self.microbatches

    def with_task(self, task: AnyTask) -> "Experiment":
        """With this task, and a head of the model that has its outputs."""
        return replace(self, task=task, model=replace(self.model, outputs=task.outputs))

    def with_vocab(self, tokenizer_size: int) -> "Experiment":
        """With the model's vocabulary filled in. Raises UserError where the tokenizer's does not fit."""
        vocab = self.model.vocab or tokenizer_size
        if vocab < tokenizer_size:
            raise UserError(f"model.vocab {vocab} is smaller than the tokenizer's {tokenizer_size} ids")
        return replace(self, model=replace(self.model, vocab=vocab)).with_task(self.task)


@contextmanager
def beside(file: Path):
    """Lets an experiment import those that lie beside it, and forgets them afterwards."""
    known, folder = set(sys.modules), str(file.absolute().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        for name in set(sys.modules) - known:
            if Path(getattr(sys.modules[name], "__file__", None) or "").parent == Path(folder):
                del sys.modules[name]


def load(path: str, overrides: list[str]) -> Experiment:
    """The `experiment` of a Python file, with overrides such as "optimizer.b2=0.95" applied and all types checked.

    Raises UserError, naming the file and line, or the key.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"--config {path_text(path)}: no such file")
    try:
        with beside(file):
            value = runpy.run_path(str(file)).get("experiment")
    except UserError:
        raise
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        line = f":{frames[-1].lineno}" if frames else ""
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else line
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path_text(path)}{line}: {reason}") from None
    if not isinstance(value, Experiment):
        raise UserError(f"{path_text(path)}: expected a line `experiment = Experiment(...)`")
    tree = configs.to_tree(value)
    for override in sorted(overrides, key=lambda text: text.partition("=")[0].count(".")):
        key, _, text = override.partition("=")
        configs.apply(Experiment, tree, key, text)
    return configs.from_tree(Experiment, tree)
