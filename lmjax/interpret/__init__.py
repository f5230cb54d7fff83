"""What is going on inside a model: read, changed and traced through the same modules that train it."""

from lmjax.interpret.capture import capture, patch, sites
from lmjax.interpret.circuits import singular_values
from lmjax.interpret.direct import components, direct_attribution
from lmjax.interpret.gradients import gradient_times_input, integrated_gradients
from lmjax.interpret.heads import head_scores, patterns, scores_of_text
from lmjax.interpret.lens import logit_lens
from lmjax.models.tap import Patch

__all__ = [
    "Patch", "capture", "components", "direct_attribution", "gradient_times_input", "head_scores",
    "integrated_gradients", "logit_lens", "patch", "patterns", "scores_of_text", "singular_values", "sites",
]  # fmt: skip
