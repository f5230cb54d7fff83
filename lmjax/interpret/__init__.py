"""What is going on inside a model: read, changed and traced through the same modules that train it."""

from lmjax.interpret.ablation import ablate
from lmjax.interpret.attribution_patching import attribution_patching
from lmjax.interpret.capture import capture, patch, sites
from lmjax.interpret.features import contexts, features
from lmjax.interpret.patching import LogitDifference, activation_patching
from lmjax.interpret.paths import Receiver, path_patching
from lmjax.interpret.probes import probe
from lmjax.interpret.steering import generate_with, steering_vector
from lmjax.models.tap import Patch

__all__ = [
    "LogitDifference", "Patch", "Receiver", "ablate", "activation_patching", "attribution_patching", "capture",
    "contexts", "features", "generate_with", "patch", "path_patching", "probe", "sites", "steering_vector",
]  # fmt: skip
