"""A model to call from Python: text in, log-probabilities and text out."""

from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import jax
import numpy as np

from lmjax.batching import Output, Reader, Score, Text, judged, scores
from lmjax.classifier import Classifier
from lmjax.errors import UserError
from lmjax.generate.beam import way, write
from lmjax.loaded import check_next_token, load_model
from lmjax.masked_model import MaskedModel
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.models.packed import Weights
from lmjax.models.packed_params import pack_params
from lmjax.models.positions import in_rows
from lmjax.models.transformer import apart
from lmjax.places import Place
from lmjax.tasks.classification import Classification
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.text_to_text import TextToText
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.sides import prompt_ids

Dtype = Literal["float32", "bfloat16"]


@partial(jax.jit, static_argnames="cfg")
def _forward(cfg: ModelConfig, params, tokens_BT, lengths_B):
    """As `batching.judged`."""
    positions_BT, _ = in_rows(tokens_BT)
    hidden_BTD, _ = transformer.hidden(cfg, params, tokens_BT, positions_BT)
    return judged(cfg, params, hidden_BTD, tokens_BT, lengths_B)


class LanguageModel:
    """cfg, params and tokenizer of a causal language model, layers apart. tokenizer: None where there is none; then
    only arrays of ids go in."""

    def __init__(self, cfg: ModelConfig, params: dict, tokenizer: Tokenizer | None, path: Place):
        self.cfg, self.tokenizer, self.path = cfg, tokenizer, path
        self.params = apart(params)
        self._reader = Reader(cfg, tokenizer, path)

    def __call__(self, text: Text) -> Output:
        """Logits and loss of a text, a list of texts, or an integer array (B, T) of ids. Raises UserError where a text
        is longer than the model's context, has no token, or an id is outside the vocabulary."""
        tokens, lengths, (logits, _, loss) = self._run(text)
        return Output(tokens, lengths, logits[:, : tokens.shape[1]], float(loss))

    def score(self, text: Text) -> Score | list[Score]:
        """A Score for a text, a list of them for a list or an array. Raises UserError as a call."""
        tokens, lengths, (_, each, _) = self._run(text)
        found = scores(tokens, lengths, np.asarray(each))
        return found[0] if isinstance(text, str) else found

    def generate(
        self, prompt: Text, *, max_new_tokens: int = 20, temperature: float = 0.0, top_k: int | None = None,
        top_p: float = 1.0, min_p: float = 0.0, seed: int = 0, beams: int = 1, length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
    ) -> str | list[str] | list[np.ndarray]:  # fmt: skip
        """The prompt with what follows it: a str for a str, a list for a list, a list of arrays of ids for an array.
        temperature 0 takes the most probable token each time. beams and what follows: see `generate.beam.Beam`. Raises
        UserError as a call, and for want of room."""
        how = way(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, beams=beams,
            length_penalty=length_penalty, early_stopping=early_stopping,
        )  # fmt: skip
        olds = self._reader.rows(prompt, prompt_ids)
        news = write(self.cfg, self.params, olds, how, seed=seed, max_new_tokens=max_new_tokens, **self._reader.writing)
        return self._reader.as_asked(prompt, [np.concatenate(pair) for pair in zip(olds, news, strict=True)])

    def _run(self, text: Text):
        tokens, lengths = self._reader.filled_up(self._reader.rows(text, prompt_ids))
        return tokens, lengths, _forward(self.cfg, self.params, self._reader.padded(tokens), lengths)


def load(
    path: Place | str, *, step: int | str | None = None, dtype: Dtype = "float32",
    weights: Weights = "float32",
) -> LanguageModel | TextToText | Classifier | MaskedModel:  # fmt: skip
    """The model of a run directory or a Hugging Face directory, or "hf:NAME" from the hub (extra [hub]): a TextToText
    where it has an encoder and a decoder, a Classifier where its task is Classification, a MaskedModel where it is
    MaskedLM. dtype: of the computation.
    weights: see models/packed.py. step: see `load_model`. Raises UserError as that, and for another word."""
    for name, value, known in (("dtype", dtype, get_args(Dtype)), ("weights", weights, get_args(Weights))):
        if value not in known:
            raise UserError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    loaded = load_model(path, step, stacked=False)
    cfg = replace(loaded.experiment.model, dtype=dtype, dropout=0.0)
    params = pack_params(cfg, apart(loaded.params), weights)
    if isinstance(loaded.experiment.task, Classification):
        return Classifier(replace(loaded, experiment=replace(loaded.experiment, model=cfg)), params)
    if isinstance(loaded.experiment.task, MaskedLM):
        return MaskedModel(cfg, params, loaded.tokenizer, loaded.path)
    check_next_token(loaded, "lmjax.load")
    if cfg.encoder_layers:
        return TextToText(cfg, params, loaded.tokenizer, loaded.path, loaded.start)
    return LanguageModel(cfg, params, loaded.tokenizer, loaded.path)
