"""A checkpoint's config.json: typed, bounded access, and the parts that several families share."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmjax.errors import UserError, path_text
from lmjax.json_files import read_object
from lmjax.models.positions import Llama3, Rotary, Stretched, Yarn

FILE = "config.json"
# of PEFT
ADAPTER_FILE = "adapter_config.json"
SIZE_LIMIT = 10_000_000
# no width or vocabulary of any model comes near; nor does any number of layers or experts
NUMBER_LIMIT, COUNT_LIMIT = 10**8, 1000
NEEDED = object()

# names of transformers' ACT2FN
ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh", "gelu_accurate": "gelu_tanh", "gelu_fast": "gelu_tanh", "relu": "relu",
    "relu2": "relu_squared", "silu": "silu", "swish": "silu",
}  # fmt: skip
THEIR_ACTIVATIONS = {
    "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "relu_squared": "relu2", "silu": "silu",
}  # fmt: skip


@dataclass(frozen=True)
class ConfigJson:
    """The object in the file, or one inside it. Each access raises UserError where the value is not what it says."""

    where: str
    values: dict[str, Any]

    def _wrong(self, name: str, expected: str) -> UserError:
        value = repr(self.values.get(name))
        return UserError(f"{self.where}: {name} is {value[:80]}; expected {expected}")

    def has(self, name: str) -> bool:
        """Whether there is a value, which null is not."""
        return self.values.get(name) is not None

    def whole(self, name: str, default=NEEDED) -> int:
        """A positive whole number."""
        return self._value(name, default, lambda x: type(x) is int and 0 < x < NUMBER_LIMIT, "a positive whole number")

    def count(self, name: str, default=NEEDED, *, least: int = 1) -> int:
        """Of layers, or of experts: something is made for each of them."""
        expected = f"a whole number from {least} to {COUNT_LIMIT}"
        return self._value(name, default, lambda x: type(x) is int and least <= x <= COUNT_LIMIT, expected)

    def number(self, name: str, default=NEEDED) -> float:
        """A finite number of at least 0."""
        value = self._value(
            name, default, lambda x: type(x) in (int, float) and math.isfinite(x) and x >= 0, "a number of at least 0"
        )
        return value if value is None else float(value)

    def positive(self, name: str, default=NEEDED) -> float:
        """A finite number above 0."""
        if self.values.get(name) == 0:
            raise self._wrong(name, "a number above 0")
        return self.number(name, default)

    def flag(self, name: str, default=NEEDED) -> bool:
        return self._value(name, default, lambda x: type(x) is bool, "true or false")

    def text(self, name: str, default=NEEDED) -> str:
        return self._value(name, default, lambda x: type(x) is str, "a text")

    def _value(self, name: str, default, fits, expected: str):
        value = self.values.get(name)
        if value is None:
            if default is NEEDED:
                raise self._wrong(name, expected)
            return default
        if not fits(value):
            raise self._wrong(name, expected)
        return value

    def part(self, name: str) -> "ConfigJson":
        """An object inside this one; an empty one where there is none."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return ConfigJson(f"{self.where}: {name}", value or {})

    def only(self, name: str, value) -> None:
        """Refuse what changes the model in a way that we have not."""
        if self.has(name) and self.values[name] != value:
            raise self._wrong(name, f"{value!r}, which is all that is supported")

    def activation(self, name: str, default: str) -> str:
        found = self.text(name, default)
        if found not in ACTIVATIONS:
            raise self._wrong(name, f"one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[found]


def read_config(directory: Path, name: str = FILE) -> ConfigJson:
    """config.json of a checkpoint directory, or another such file. Raises UserError where it is missing, or no object
    of JSON."""
    file = directory / name
    if not file.exists():
        raise UserError(f"{path_text(file)}: no such file; expected a Hugging Face checkpoint or a run")
    return ConfigJson(path_text(file), read_object(file, SIZE_LIMIT, "a model's configuration"))


def rotary(config: ConfigJson, *, theta: float = 10_000.0, fraction: float = 1.0, kind: str | None = None) -> Rotary:
    """Rotary positions as transformers 2 to 5 have written them: `rope_parameters` (of a kind of layer, where it has
    one for each), or rope_theta and partial_rotary_factor beside `rope_scaling`. theta, fraction: the family's."""
    given = config.part("rope_parameters")
    if kind is not None and given.has(kind):
        given = given.part(kind)
    scaling = given if given.has("rope_type") or given.has("type") else config.part("rope_scaling")
    theta = given.number("rope_theta", config.number("rope_theta", config.number("rotary_emb_base", theta)))
    fraction = given.number(
        "partial_rotary_factor", config.number("partial_rotary_factor", config.number("rotary_pct", fraction))
    )
    try:
        return Rotary(theta=theta, fraction=fraction, stretch=_stretch(scaling, config))
    except ValueError as error:
        raise UserError(f"{config.where}: rotary positions: {error}") from None


def _stretch(scaling: ConfigJson, config: ConfigJson) -> Stretched | Llama3 | Yarn | None:
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    context = config.whole("max_position_embeddings")
    match kind:
        case "default" | "dynamic":
            # "dynamic" changes nothing up to max_position_embeddings, which is as far as we go
            return None
        case "linear":
            return Stretched(factor=scaling.number("factor"))
        case "llama3":
            return Llama3(
                factor=scaling.number("factor"),
                low=scaling.number("low_freq_factor"),
                high=scaling.number("high_freq_factor"),
                original=scaling.whole("original_max_position_embeddings", context),
            )
        case "yarn":
            return _yarn(scaling, context)
    raise UserError(f"{scaling.where}: rope_type is {kind!r}; expected default, linear, dynamic, llama3 or yarn")


def _yarn(scaling: ConfigJson, context: int) -> Yarn:
    original = scaling.whole("original_max_position_embeddings", context)
    factor = scaling.number("factor", context / original)
    magnitude = scaling.number("attention_factor", None)
    over, under = scaling.number("mscale", None), scaling.number("mscale_all_dim", None)
    if magnitude is None and over and under and factor > 1:
        magnitude = (0.1 * over * math.log(factor) + 1) / (0.1 * under * math.log(factor) + 1)
    return Yarn(
        factor=factor,
        original=original,
        fast=scaling.number("beta_fast", 32.0) or 32.0,
        slow=scaling.number("beta_slow", 1.0) or 1.0,
        magnitude=magnitude,
        whole=scaling.flag("truncate", True),
    )


def rotary_json(rotary: Rotary) -> dict[str, Any]:
    """rope_theta and rope_scaling, which every version of transformers reads."""
    match rotary.stretch:
        case None:
            scaling = None
        case Stretched(factor=factor):
            scaling = {"rope_type": "linear", "factor": factor}
        case Llama3(factor=factor, low=low, high=high, original=original):
            scaling = {
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }  # fmt: skip
        case Yarn() as yarn:
            scaling = {
                "rope_type": "yarn", "factor": yarn.factor, "original_max_position_embeddings": yarn.original,
                "beta_fast": yarn.fast, "beta_slow": yarn.slow, "truncate": yarn.whole,
            }  # fmt: skip
            if yarn.magnitude is not None:
                scaling["attention_factor"] = yarn.magnitude
    return {"rope_theta": rotary.theta, "rope_scaling": scaling}
