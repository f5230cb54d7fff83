"""lmjax: language models in JAX, from raw text to a trained, evaluated, sampled model."""

import importlib

_HOME = {
    "Experiment": "lmjax.experiment",
    "DataConfig": "lmjax.experiment",
    "ModelConfig": "lmjax.models.config",
    "UserError": "lmjax.errors",
    "train": "lmjax.train.loop",
    "load": "lmjax.language_model",
    "LanguageModel": "lmjax.language_model",
    "TextToText": "lmjax.text_to_text",
    "MaskedModel": "lmjax.masked_model",
    "Classifier": "lmjax.classifier",
}

__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'lmjax' has no attribute {name!r}")
    home = importlib.import_module(_HOME[name])
    return getattr(home, name)


def __dir__():
    return __all__
