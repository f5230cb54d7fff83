"""What is going on inside a model: read, changed and traced through the same modules that train it."""

from lmjax.interpret.ablation import ablate
from lmjax.interpret.attribution_patching import attribution_patching
from lmjax.interpret.capture import capture, patch, sites
from lmjax.interpret.circuits import singular_values
from lmjax.interpret.direct import components, direct_attribution
from lmjax.interpret.features import contexts, features
from lmjax.interpret.gradients import gradient_times_input, integrated_gradients
from lmjax.interpret.heads import head_scores, patterns, scores_of_text
from lmjax.interpret.lens import logit_lens
from lmjax.interpret.patching import LogitDifference, activation_patching
from lmjax.interpret.paths import Receiver, path_patching
from lmjax.interpret.probes import probe
from lmjax.interpret.steering import generate_with, steering_vector
from lmjax.models.tap import Patch

__all__ = [
    "LogitDifference", "Patch", "Receiver", "ablate", "activation_patching", "attribution_patching", "capture",
    "components", "contexts", "direct_attribution", "features", "generate_with", "gradient_times_input",
    "head_scores", "integrated_gradients", "logit_lens", "patch", "path_patching", "patterns", "probe",
    "scores_of_text", "singular_values", "sites", "steering_vector",
]  # fmt: skip
