"""What is going on inside a model: read, changed and traced through the same modules that train it."""

from lmjax.interpret.capture import capture, patch, sites
from lmjax.models.tap import Patch

__all__ = ["Patch", "capture", "patch", "sites"]
