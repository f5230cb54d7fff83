"""Texts in, texts out."""

import numpy as np

from lmjax.errors import UserError
from lmjax.experiment import Experiment
from lmjax.generate.beam import Beam, write
from lmjax.generate.sampling import Choice, choice
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.chat import chat_ids, stops_of
from lmjax.tokenizers.sides import prompt_ids, source_ids


def answers(
    experiment: Experiment, params, tokenizer: Tokenizer, prompts: list[str], *, max_new_tokens: int,
    how: Choice | Beam, seed: int = 0,
) -> list[str]:  # fmt: skip
    """What the model answers to each prompt as a user's message. Raises UserError as `chat_ids` and `generate`."""
    ids = [chat_ids(tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
    stops, known = stops_of(tokenizer), tokenizer.vocab_size
    news = write(experiment.model, params, ids, how, max_new_tokens=max_new_tokens, seed=seed, stops=stops, known=known)
    return [tokenizer.decode(new) for new in news]


def continue_texts(
    experiment: Experiment, params, tokenizer: Tokenizer, prompts: list[str], *, max_new_tokens: int,
    how: Choice | Beam, seed: int = 0,
) -> list[str]:  # fmt: skip
    """Each prompt with what the model writes after it, up to the tokenizer's EOS. Raises UserError as `generate`."""
    ids = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    return _written(experiment, params, tokenizer, ids, max_new_tokens=max_new_tokens, how=how, seed=seed)


def _written(experiment, params, tokenizer: Tokenizer, ids: list[np.ndarray], **settings) -> list[str]:
    """The texts of these ids and of what the model writes after them."""
    stops, known = tokenizer.policy.stops, tokenizer.vocab_size
    news = write(experiment.model, params, ids, stops=stops, known=known, **settings)
    # decoded together: a character may begin in the prompt and end after it
    return [tokenizer.decode(np.concatenate([old, new])) for old, new in zip(ids, news, strict=True)]


def written_for(
    experiment: Experiment, params, tokenizer: Tokenizer, sources: list[str], *, start: int, max_new_tokens: int,
    how: Choice | Beam, seed: int = 0,
) -> list[str]:  # fmt: skip
    """What an encoder-decoder writes for each source, beginning with the id `start`. Raises UserError as `generate`."""
    ids, starts = [source_ids(text, tokenizer) for text in sources], [np.array([start], np.int32)] * len(sources)
    stops, known = tokenizer.policy.stops, tokenizer.vocab_size
    news = write(
        experiment.model, params, starts, how, max_new_tokens=max_new_tokens, seed=seed, stops=stops, known=known,
        sources=ids,
    )  # fmt: skip
    return [tokenizer.decode(new) for new in news]


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
    (text,) = _written(experiment, params, tokenizer, [ids], max_new_tokens=room, how=how, seed=experiment.seed)
    return text
