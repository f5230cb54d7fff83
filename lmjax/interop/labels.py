"""The labels of a model in config.json, in and out; and which of our models for labels transformers has.

Its models read the vector of the first token by way of a pooler (encoders) or the last one's (the others).
"""

from typing import Any

from lmjax.errors import UserError
from lmjax.interop.config_json import ConfigJson
from lmjax.interop.family import LabelHead
from lmjax.models.config import ModelConfig
from lmjax.tasks.any_task import AnyTask
from lmjax.tasks.classification import Classification

ONE_LABEL = "single_label_classification"


def labels_of(config: ConfigJson, head: LabelHead | None, tensors: dict) -> tuple[str, ...] | None:
    """The names in the order of the outputs; None where the files are of no model that labels texts. Raises UserError
    where they are of one that does something else with its outputs."""
    given = config.values.get("architectures")
    named = given if isinstance(given, list) and given else None
    # files of models for other tasks have layers by the same name
    if head is None or not (head.architecture in named if named else f"{head.linear}.weight" in tensors):
        return None
    config.only("problem_type", ONE_LABEL)
    if not config.has("id2label"):
        return tuple(f"LABEL_{i}" for i in range(config.whole("num_labels", 2)))
    names = config.part("id2label").values
    ordered = [names.get(str(i)) for i in range(len(names))]
    if not all(isinstance(name, str) for name in ordered) or len(set(ordered)) != len(ordered) or len(ordered) < 2:
        raise UserError(
            f"{config.where}: id2label is {str(names)[:80]}; expected two or more different names, numbered from 0"
        )
    return tuple(ordered)


def labels_json(labels: tuple[str, ...] | None) -> dict[str, Any]:
    """The fields that say them."""
    if labels is None:
        return {}
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)}, "problem_type": ONE_LABEL,
    }  # fmt: skip


def written(task: AnyTask, cfg: ModelConfig) -> tuple[str, ...] | None:
    """The labels that are written of a model trained for this task; None of one without outputs. Raises UserError where
    transformers has no such model."""
    if not cfg.outputs:
        return None
    if not isinstance(task, Classification):
        raise UserError(f"export: heads of the task {type(task).__name__} have no form there yet; labels have")
    pooling, theirs = task.pooling_of(cfg), "last" if cfg.causal else "first"
    if pooling != theirs:
        kind = "a causal model" if cfg.causal else "an encoder"
        raise UserError(
            f"export: task.pooling is {pooling}; transformers labels a text of {kind} by its {theirs} token's vector"
        )
    return task.labels
