"""An encoder-decoder to call from Python: two texts in, log-probabilities out; one in, another out."""

from functools import partial
from typing import Literal

import jax
import numpy as np

from lmjax.batching import Output, Reader, Score, Text, judged, scores
from lmjax.errors import UserError
from lmjax.generate.beam import way, write
from lmjax.loaded import needed_start
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.models.positions import in_rows
from lmjax.models.transformer import apart
from lmjax.places import Place
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.sides import source_ids, target_ids


@partial(jax.jit, static_argnames="cfg")
def _forward(cfg: ModelConfig, params, source_BS, source_lengths_B, tokens_BT, lengths_B):
    """As `batching.judged`."""
    positions_BT, _ = in_rows(tokens_BT)
    source = transformer.encode(cfg, params, source_BS, *in_rows(source_BS, source_lengths_B))
    hidden_BTD, _ = transformer.hidden(cfg, params, tokens_BT, positions_BT, source=source)
    return judged(cfg, params, hidden_BTD, tokens_BT, lengths_B)


class TextToText:
    """cfg, params and tokenizer of a decoder that attends to an encoder, layers apart. tokenizer: None where there is
    none; then only arrays of ids go in. start: the id that the decoder begins with; None: nobody says."""

    def __init__(self, cfg: ModelConfig, params: dict, tokenizer: Tokenizer | None, path: Place, start: int | None):
        self.cfg, self.tokenizer, self.path, self.start = cfg, tokenizer, path, start
        self.params = apart(params)
        self._reader = Reader(cfg, tokenizer, path)

    def __call__(self, target: Text, *, source: Text) -> Output:
        """Logits and loss of targets, each given its source: texts, lists of texts, or integer arrays (B, T) of ids.
        Ids of a target are the decoder's inputs as they are, those of a source the encoder's; a target's text gets
        `start` before it and EOS behind it. Raises UserError where there are more of one than of the other, one is
        longer than the model's context or has no token, or an id is outside the vocabulary."""
        tokens, lengths, (logits, _, loss) = self._run(target, source)
        return Output(tokens, lengths, logits[:, : tokens.shape[1]], float(loss))

    def score(self, target: Text, *, source: Text) -> Score | list[Score]:
        """A Score for a text, a list of them for a list or an array. Raises UserError as a call."""
        tokens, lengths, (_, each, _) = self._run(target, source)
        found = scores(tokens, lengths, np.asarray(each))
        return found[0] if isinstance(target, str) else found

    def generate(
        self, source: Text, *, max_new_tokens: int = 20, temperature: float = 0.0, top_k: int | None = None,
        top_p: float = 1.0, min_p: float = 0.0, seed: int = 0, beams: int = 1, length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
    ) -> str | list[str] | list[np.ndarray]:  # fmt: skip
        """What the model writes for each source: a str for a str, a list for a list, a list of arrays of ids for an
        array. Settings and errors as `LanguageModel.generate`'s."""
        how = way(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, beams=beams,
            length_penalty=length_penalty, early_stopping=early_stopping,
        )  # fmt: skip
        sources = self._reader.rows(source, source_ids)
        self._reader.filled_up(sources)
        starts = [np.array([needed_start(self)], np.int32)] * len(sources)
        news = write(
            self.cfg, self.params, starts, how, seed=seed, max_new_tokens=max_new_tokens, sources=sources,
            **self._reader.writing,
        )  # fmt: skip
        return self._reader.as_asked(source, news)

    def _run(self, target: Text, source: Text):
        reader = self._reader
        targets = reader.rows(target, lambda text, tokenizer: target_ids(text, tokenizer, needed_start(self)))
        sources = reader.rows(source, source_ids)
        if len(targets) != len(sources):
            raise UserError(f"{len(targets)} targets and {len(sources)} sources; expected one for each")
        (tokens, lengths), (source_tokens, source_lengths) = reader.filled_up(targets), reader.filled_up(sources)
        padded = reader.padded(source_tokens), source_lengths, reader.padded(tokens), lengths
        return tokens, lengths, _forward(self.cfg, self.params, *padded)
