"""All families, and how one is found: from a config.json, or for a model of ours."""

from dataclasses import replace

from lmjax import configs
from lmjax.errors import UserError
from lmjax.interop.bert import BERT, ROBERTA
from lmjax.interop.config_json import ConfigJson
from lmjax.interop.family import Family, normal
from lmjax.interop.gemma import GEMMA2, GEMMA3
from lmjax.interop.gpt2 import GPT2, GPT_NEOX
from lmjax.interop.llama import LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3
from lmjax.interop.t5 import T5
from lmjax.models.config import ModelConfig

FAMILIES = (GPT2, GPT_NEOX, LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, BERT, ROBERTA, T5)
BY_TYPE = {family.model_type: family for family in FAMILIES} | {"gemma3": GEMMA3}
BY_ARCHITECTURE = {family.architecture: family for family in FAMILIES} | {"GPT2Model": GPT2}
BY_ARCHITECTURE |= {family.bare: family for family in FAMILIES if family.bare} | {"BertForPreTraining": BERT}
BY_ARCHITECTURE |= {family.labels.architecture: family for family in FAMILIES if family.labels}


def family_of(config: ConfigJson) -> Family:
    """By model_type, or in older files by `architectures`. Raises UserError for one that is not here."""
    kind = config.text("model_type", "")
    architectures = config.values.get("architectures")
    architectures = architectures if isinstance(architectures, list) else []
    named = [family for name, family in BY_ARCHITECTURE.items() if name in architectures]
    family = BY_TYPE.get(kind) if kind else next(iter(named), None)
    if family is None:
        raise UserError(f"{config.where}: model_type is {kind!r}; expected one of {', '.join(BY_TYPE)}")
    return family


def family_for(cfg: ModelConfig) -> tuple[Family, ModelConfig]:
    """(the first family that can say all of this model, what its checkpoint will say). Raises UserError with what the
    nearest one cannot say."""
    nearest = None
    for family in FAMILIES:
        wanted = family.widened(cfg)
        if cfg.outputs:
            wanted = replace(wanted, tied=True, masked_head=None)
        said = family.read(ConfigJson(f"a {family.model_type} config.json", family.write(wanted)))
        said = family.with_parts(said, lambda part, _, wanted=wanted: bool(getattr(wanted, part)))
        if cfg.outputs and family.labels is not None:
            said = family.labelling(said, cfg.outputs)
        lines = configs.differences(configs.to_tree(normal(wanted)), configs.to_tree(normal(said)))
        if not lines:
            return family, replace(wanted, init_std=cfg.init_std)
        if nearest is None or len(lines) < len(nearest[1]):
            nearest = family, lines
    family, lines = nearest
    lines = "; ".join(lines)
    raise UserError(
        f"no Hugging Face architecture says this model; {family.model_type}, the nearest, differs in: {lines}"
    )
