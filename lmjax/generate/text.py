"""Texts in, texts out."""

from typing import NamedTuple

import numpy as np

from lmjax.errors import UserError
from lmjax.experiment import Experiment
from lmjax.generate.beam import Beam, write
from lmjax.generate.sampling import Choice, choice
from lmjax.models.config import ModelConfig
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.chat import chat_ids, stops_of
from lmjax.tokenizers.sides import prompt_ids, source_ids

NOTHING = np.zeros(0, np.int32)


class Asked(NamedTuple):
    """What is written after. prompts: ids. shown: of each what stands before the new text where that is read: the
    prompt of a text that is continued, nothing of a message or a source. stops: tokens that end a text. sources: of an
    encoder-decoder, ids."""

    prompts: list[np.ndarray]
    shown: list[np.ndarray]
    stops: tuple[int, ...]
    sources: list[np.ndarray] | None = None


def messages(tokenizer: Tokenizer, prompts: list[str]) -> Asked:
    """Each prompt as a user's message. Raises UserError as `chat_ids`."""
    ids = [chat_ids(tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
    return Asked(ids, [NOTHING] * len(ids), stops_of(tokenizer))


def beginnings(tokenizer: Tokenizer, prompts: list[str]) -> Asked:
    """Each prompt as the beginning of a text."""
    ids = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    return Asked(ids, ids, tokenizer.policy.stops)


def sources(tokenizer: Tokenizer, texts: list[str], *, start: int) -> Asked:
    """Each text as what an encoder reads; the decoder begins with the id `start`."""
    starts = [np.array([start], np.int32)] * len(texts)
    read = [source_ids(text, tokenizer) for text in texts]
    return Asked(starts, [NOTHING] * len(texts), tokenizer.policy.stops, read)


def written(
    cfg: ModelConfig, params, tokenizer: Tokenizer, asked: Asked, *, max_new_tokens: int, how: Choice | Beam,
    seed: int = 0,
) -> list[np.ndarray]:  # fmt: skip
    """The new ids. Raises UserError as `generate`."""
    return write(
        cfg, params, asked.prompts, how, max_new_tokens=max_new_tokens, seed=seed, stops=asked.stops,
        known=tokenizer.vocab_size, sources=asked.sources,
    )  # fmt: skip


def texts(tokenizer: Tokenizer, asked: Asked, news: list[np.ndarray]) -> list[str]:
    """The new ids as texts, with what is shown before them."""
    # decoded together: a character may begin in the prompt and end after it
    return [tokenizer.decode(np.concatenate([old, new])) for old, new in zip(asked.shown, news, strict=True)]


def sample(experiment: Experiment, params, tokenizer: Tokenizer) -> str:
    """The text that a run writes along the way: its `sampling`, cut to the context where that is short."""
    sampling = experiment.sampling
    ids = prompt_ids(sampling.prompt, tokenizer)
    if not len(ids):
        try:
            ids = tokenizer.encode("\n")
        except UserError:
            # a tokenizer of characters that has no line feed
            ids = np.zeros(1, np.int32)
    ids = ids[: experiment.model.context - 1]
    how = choice(temperature=sampling.temperature, top_k=sampling.top_k)
    room = min(sampling.max_new_tokens, experiment.model.context - len(ids))
    asked = Asked([ids], [ids], tokenizer.policy.stops)
    news = written(experiment.model, params, tokenizer, asked, max_new_tokens=room, how=how, seed=experiment.seed)
    (text,) = texts(tokenizer, asked, news)
    return text
