"""What a model thinks of two answers, and what the model thinks that training began with."""

from dataclasses import dataclass, replace

import jax
import numpy as np

from lmjax.compilation import program
from lmjax.data.packing import PackedRows
from lmjax.data.sources import Record
from lmjax.evaluate.outputs import CHARACTERS
from lmjax.experiment import Experiment
from lmjax.loaded import Loaded, base_params
from lmjax.models.config import ModelConfig
from lmjax.run_directory import RunDirectory
from lmjax.sharding import constrain, local_rows, place_batch
from lmjax.tasks.preferences import Preferences, apart, with_reference
from lmjax.tasks.text_metrics import wilson, within
from lmjax.tokenizers import Tokenizer

# in a run's directory: by split what the model before the first step gives to the answers of each example
REFERENCE = "reference.json"


class Judge:
    """log p of answers; compiled once. Call it with a model's parameters and rows of pairs."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self._run = program(_log_p, experiment.task, experiment.model)

    def __call__(self, params, rows: PackedRows) -> np.ndarray:
        """(E, 2) in float32: of each example log p of the chosen and of the rejected answer, on the mesh in use."""
        size, mesh, found = self.experiment.microbatch_size, jax.sharding.get_mesh(), []
        part = None if mesh.empty else local_rows(mesh, size)
        for batch in rows.in_order(size, part):
            batch = apart(batch)
            found.append(self._run(params, batch if mesh.empty else place_batch(batch, mesh, size)))
        log_p_RP2, out_E2 = np.concatenate(jax.device_get(found)), np.zeros((len(rows.tokens), 2), np.float32)
        for row, examples in enumerate(rows.rows):
            out_E2[examples] = log_p_RP2[row, : len(examples)]
        return out_E2


def stored_reference(run: RunDirectory, fingerprints: list[str]) -> list[np.ndarray] | None:
    """What a run remembers of its reference, for rows with these fingerprints, each (E, 2); None where it remembers
    none of other rows."""
    known = run.read_json(REFERENCE)
    places = [known["fingerprints"].index(one) if one in known["fingerprints"] else None for one in fingerprints]
    return None if None in places else [np.array(known["log_p"][place], np.float32) for place in places]


def referred(loaded: Loaded, experiment: Experiment, rows: PackedRows) -> PackedRows:
    """Rows with what the model gives to them that the run began from. Raises UserError where they are not the run's own
    held-out ones, and that model is not there any more, or another one."""
    run = RunDirectory(loaded.path)
    found = stored_reference(run, [rows.fingerprint()])
    if found is None:
        found = [Judge(experiment)(base_params(run, experiment, None), rows)]
    return with_reference(rows, found[0])


@dataclass(frozen=True)
class PreferenceFigures:
    """chosen_likelier: the share of pairs whose chosen answer is the likelier one, all tokens together, with Wilson's
    interval of 95 %. difference: the mean of log p(chosen) - log p(rejected), in nats."""

    pairs: int
    chosen_likelier: float
    chosen_likelier_interval: tuple[float, float]
    difference: float

    def metrics(self) -> dict[str, float]:
        return {"chosen_likelier": self.chosen_likelier, "difference": self.difference}

    def lines(self) -> list[str]:
        """As a user reads it."""
        share = f"{self.chosen_likelier:.4f}{within(self.chosen_likelier_interval)}, {self.pairs:,} pairs"
        return [f"chosen answer likelier {share}; by {self.difference:.4f} nats in the mean"]


class Chooser:
    """`predictors.Predictor` of the task Preferences: which answer the model finds likelier, whatever it
    found before training."""

    def __init__(self, experiment: Experiment, tokenizer: Tokenizer):
        self.experiment, self.tokenizer = experiment, tokenizer
        self._judge = Judge(experiment)

    def __call__(self, params, records: list[Record]) -> list[dict]:
        """log p of both answers, and the name of the field of the likelier one."""
        experiment, task = self.experiment, replace(self.experiment.task, too_long="error")
        names, length = (task.chosen, task.rejected), experiment.length
        examples = [task.encode(record, self.tokenizer, experiment.model, length)[0] for record in records]
        log_p_E2 = self._judge(params, PackedRows(examples, length=length, source_length=length))
        return [
            {"likelier": names[int(chosen <= rejected)], "log_p": dict(zip(names, (chosen, rejected), strict=True))}
            for chosen, rejected in log_p_E2.tolist()
        ]

    def truth(self, records: list[Record]) -> list[str]:
        """The name of the field of the chosen answer."""
        return [self.experiment.task.chosen] * len(records)

    def figures(self, truth: list[str], predictions: list[dict]) -> PreferenceFigures:
        right = [prediction["likelier"] == name for name, prediction in zip(truth, predictions, strict=True)]
        apart_by = [chosen - rejected for chosen, rejected in (p["log_p"].values() for p in predictions)]
        interval = tuple(wilson(sum(right), len(right)))
        return PreferenceFigures(len(right), sum(right) / len(right), interval, float(np.mean(apart_by)))

    def told(self, record: Record, prediction: dict) -> str:
        """The end of the chosen conversation, and log p of both answers."""
        task, found = self.experiment.task, prediction["log_p"]
        chosen = record.field(task.chosen)
        text = chosen if isinstance(chosen, str) else chosen[-1]["content"]
        return f"{text[-CHARACTERS:]!r}: log p {found[task.chosen]:.2f}, of the rejected {found[task.rejected]:.2f}"


def _log_p(task: Preferences, cfg: ModelConfig, params, batch):
    # whole on every device, so that each process has all of it
    return constrain(task.log_p(cfg, params, batch), None, None, None)
