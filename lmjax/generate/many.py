"""Writing after many prompts, a batch at a time."""

from collections.abc import Callable, Iterable

import jax
import numpy as np

from lmjax.generate.beam import Beam, write
from lmjax.generate.decode import turns
from lmjax.generate.sampling import Choice
from lmjax.models.config import ModelConfig

ROWS_ON_CPU, ROWS = 8, 64


def write_all(
    cfg: ModelConfig, params, prompts: list[np.ndarray], how: Choice | Beam, *, max_new_tokens: int | np.ndarray,
    sources: list[np.ndarray] | None = None, rows: int | None = None,
    followed: Callable[[list], Iterable] = iter, **settings,
) -> list[np.ndarray]:  # fmt: skip
    """The new tokens of each prompt, as `beam.write`. max_new_tokens: of all, or of each. rows: at one time. followed:
    goes through the batches, lists of the prompts' numbers, and may tell of it."""
    # rows of like lengths together; always as many, so that few programs are compiled
    B = rows or (ROWS_ON_CPU if jax.default_backend() == "cpu" else ROWS)
    # a prompt that stands in two batches gets two texts
    texts = sources or prompts
    turn = turns(texts)
    order = np.argsort([len(one) for one in texts], kind="stable")[::-1]
    found = [np.zeros(0, np.int32)] * len(prompts)
    for index in followed([order[i : i + B] for i in range(0, len(order), B)]):
        whole = [*index, *[index[-1]] * (B - len(index))]
        limits = np.broadcast_to(max_new_tokens, len(prompts))[whole]
        own = {} if sources is None else {"sources": [sources[i] for i in whole]}
        if isinstance(how, Choice):
            own["turns_B"] = [turn[i] for i in whole]
        news = write(cfg, params, [prompts[i] for i in whole], how, max_new_tokens=limits, **own, **settings)
        for i, new in zip(index, news, strict=False):
            found[i] = new
    return found
