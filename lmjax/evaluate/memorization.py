"""How much of its training text a model writes word for word.

Windows of the training text are begun, and what the model writes greedily is compared with what stood there (Carlini et
al. 2022, arXiv:2202.07646, section 3). Held-out windows of the same sources are the control: what they give is
predictable text, and not memory.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from lmjax.data.store import TokenStream
from lmjax.errors import UserError, path_text
from lmjax.evaluate.averages import drawn_mean
from lmjax.evaluate.contamination import overlaps
from lmjax.evaluate.likelihood import protocol_of
from lmjax.evaluate.progress import followed
from lmjax.evaluate.result import Result, share
from lmjax.evaluate.settings import Settings
from lmjax.evaluate.training_text import streams
from lmjax.generate.many import write_all
from lmjax.generate.sampling import choice
from lmjax.language_model import LanguageModel

# the paper's
TOKENS = 50
WINDOWS = 500


@dataclass(frozen=True)
class Memorization:
    """prompt_tokens are given, max_new_tokens written; limit: windows of each split, 500 where it is not given."""

    settings: Settings

    @staticmethod
    def of(settings: Settings) -> "Memorization":
        """Raises UserError where a file is named: the text is the run's own."""
        if settings.data is not None:
            raise UserError("--data: memorization reads the text that the run was trained on")
        return Memorization(settings)

    def run(self, model: LanguageModel) -> Result:
        given, written = self._sizes(model)
        parts = streams(model.path, "memorization", records=False)
        windows = [
            drawn(part, given + written, self.settings.limit or WINDOWS, self.settings.seed + i)
            for i, part in enumerate(parts)
        ]
        if not len(windows[0]):
            raise UserError(
                f"--prompt_tokens {given} and --max_new_tokens {written}: no training document of "
                f"{path_text(model.path)} has so many tokens; expected fewer"
            )
        matched = _matched(model, windows, given)
        seen_H = [one.all() for one in overlaps(list(windows[1]), parts[0], given + written)]
        figures = {}
        for name, length_W in zip(("", "held_out_"), matched, strict=True):
            if len(length_W):
                figures[f"{name}exact_match"] = share(length_W == written)
                figures[f"{name}matched_tokens"] = drawn_mean(length_W, self.settings.seed)
        protocol = {
            "windows": f"{len(windows[0]):,} of the training text and {len(windows[1]):,} held out, disjoint, each "
            "within one document",
            "given_and_written": f"{given} tokens, then {written}, greedily; an end token does not end a text",
            "exact_match": "all of these are those of the text, Wilson's interval; matched_tokens: how many are before "
            "the first other one, bootstrap over the windows",
            "held_out_windows_that_stand_in_the_training_text": int(sum(seen_H)),
            "seed": self.settings.seed,
            **protocol_of(model),
        }
        pieces = [_told(model, window[given:], length) for window, length in zip(windows[0], matched[0], strict=True)]
        longest = sorted(pieces, key=lambda row: -row["matched_tokens"])[:10]
        return Result("memorization", len(windows[0]), protocol, figures, extra={"longest_matches": longest})

    def _sizes(self, model: LanguageModel) -> tuple[int, int]:
        """(given, written). Raises UserError where the model's context has no room for both."""
        context, settings = model.cfg.context, self.settings
        if not model.cfg.causal:
            raise UserError(f"--suite memorization: {path_text(model.path)} is an encoder, and continues no text")
        given, written = settings.prompt_tokens, settings.max_new_tokens
        given = given or min(TOKENS, (context - (written or 0)) // (1 if written else 2))
        written = written or min(TOKENS, context - given)
        if given < 1 or written < 1 or given + written > context:
            raise UserError(
                f"--prompt_tokens {given} and --max_new_tokens {written}: the model's context is {context}; expected "
                "both to fit in it"
            )
        return given, written


def drawn(parts: list[TokenStream], size: int, count: int, seed: int) -> np.ndarray:
    """(W, size) ids of disjoint windows within documents, at most `count`: documents are tiled, each from a place that
    is drawn, and every tile of all parts is as likely as another."""
    rng = np.random.default_rng(seed)
    ends = [np.append(stream.starts[1:], stream.size) for stream in parts]
    start_D = np.concatenate([stream.starts for stream in parts])
    part_D = np.repeat(np.arange(len(parts)), [len(stream.starts) for stream in parts])
    length_D = np.concatenate(ends) - start_D
    tiles_D = length_D // size
    offset_D = start_D + rng.integers(0, length_D - tiles_D * size + 1)
    before_D = np.cumsum(tiles_D) - tiles_D
    total = int(tiles_D.sum())
    tile_W = np.sort(rng.choice(total, min(count, total), replace=False)) if total else np.zeros(0, int)
    document_W = np.searchsorted(before_D + tiles_D, tile_W, side="right")
    first_W = offset_D[document_W] + size * (tile_W - before_D[document_W])
    found = [
        parts[part].gather(first + np.arange(size))
        for part, first in zip(part_D[document_W].tolist(), first_W.tolist(), strict=True)
    ]
    return np.array(found, np.int32).reshape(-1, size)


def _matched(model: LanguageModel, windows: list[np.ndarray], given: int) -> list[np.ndarray]:
    """Of each window, how many tokens the model writes as they stand there."""
    both = np.concatenate(windows)
    prompts = list(both[:, :given])
    news = write_all(
        model.cfg, model.params, prompts, choice(), max_new_tokens=both.shape[1] - given,
        known=model.tokenizer.vocab_size, followed=partial(followed, total=len(prompts), size=len),
    )  # fmt: skip
    same = np.array(news) == both[:, given:]
    length = np.where(same.all(1), same.shape[1], np.argmin(same, axis=1))
    return np.split(length, [len(windows[0])])


def _told(model: LanguageModel, text: np.ndarray, length: int) -> dict:
    return {"matched_tokens": int(length), "text": model.tokenizer.decode(text[:length])}
