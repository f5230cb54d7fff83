"""How probable a model finds each token of what it wrote, as colours on a terminal or as numbers."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.generate.decode import filled_up, padded
from lmjax.generate.text import Asked
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.models.positions import in_rows
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.pieces import same_beginning

RESET = "\x1b[0m"
# what a decoder puts for bytes that are no whole character
UNFINISHED = "\ufffd"


class Level(NamedTuple):
    """Probabilities from `least` on. rgb: of the background, of which black text stands out; number: of the nearest of
    256 colours."""

    least: float
    rgb: tuple[int, int, int]
    number: int


# from blue-green to red, which colour-blind readers tell apart by how dark they are, too
LEVELS = (
    Level(0.9, (135, 215, 175), 115), Level(0.5, (175, 215, 135), 150), Level(0.2, (215, 215, 95), 185),
    Level(0.05, (255, 175, 95), 215), Level(0.01, (255, 135, 95), 209), Level(0.0, (255, 95, 95), 203),
)  # fmt: skip


class Piece(NamedTuple):
    """Written tokens that make whole characters, nearly always one. probability: of all of them."""

    text: str
    probability: float


@dataclass(frozen=True)
class Palette:
    """How text is coloured. colours: None: not at all."""

    colours: int | None

    @staticmethod
    def of(environment: Mapping[str, str], terminal: bool) -> "Palette":
        """By NO_COLOR (no-color.org), TERM and COLORTERM; only on a terminal."""
        if not terminal or environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
            return Palette(None)
        true = environment.get("COLORTERM") in ("truecolor", "24bit")
        return Palette(1 << 24 if true else 256)

    def on(self, text: str, level: Level) -> str:
        """The text on the level's colour; a line feed is never coloured, so that no line is filled up."""
        red, green, blue = level.rgb
        back = f"2;{red};{green};{blue}" if self.colours > 256 else f"5;{level.number}"
        return "\n".join(f"\x1b[30;48;{back}m{line}{RESET}" if line else "" for line in text.split("\n"))


def level_of(probability: float) -> Level:
    return next(level for level in LEVELS if probability >= level.least)


@partial(jax.jit, static_argnames="cfg")
def _log_p(cfg: ModelConfig, params, tokens_BT, known, source):
    """(B, T - 1) of each next token, the logits of one row in memory at a time. source: (tokens_BS, lengths_B) or
    None."""
    positions_BT, _ = in_rows(tokens_BT)
    if source is not None:
        tokens_BS, lengths_B = source
        source = transformer.encode(cfg, params, tokens_BS, *in_rows(tokens_BS, lengths_B))
    hidden_BTD, _ = transformer.hidden(cfg, params, tokens_BT, positions_BT, source=source)
    matrix_VD = transformer.unembedding(cfg, params)

    def row(pair):
        hidden_TD, targets_T = pair
        logits_TV = transformer.logits(matrix_VD, hidden_TD, cfg.logit_cap)
        logits_TV = jnp.where(jnp.arange(cfg.vocab) < known, logits_TV, -jnp.inf)
        own_T = jnp.take_along_axis(logits_TV, targets_T[:, None], axis=-1)[:, 0]
        return own_T - jax.nn.logsumexp(logits_TV, axis=-1)

    return jax.lax.map(row, (hidden_BTD[:, :-1], tokens_BT[:, 1:]))


def log_probabilities(
    cfg: ModelConfig, params, prompts: list[np.ndarray], news: list[np.ndarray], *, known: int,
    sources: list[np.ndarray] | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """log p, in nats, of each new token of each prompt, given all before it: one pass over all. The model's own, before
    temperature and limits; ids from `known` up have none."""
    whole = [np.concatenate(pair).astype(np.int32) for pair in zip(prompts, news, strict=True)]
    tokens_BT, _ = _padded(whole, cfg)
    source = None if sources is None else _padded(sources, cfg)
    log_p_BT = np.asarray(_log_p(cfg, params, tokens_BT, jnp.int32(known), source))
    return [
        row[len(prompt) - 1 : len(prompt) - 1 + len(new)]
        for row, prompt, new in zip(log_p_BT, prompts, news, strict=True)
    ]


def _padded(rows: list[np.ndarray], cfg: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    tokens_BT, lengths_B = filled_up(rows)
    return padded(tokens_BT, cfg.context), lengths_B


def pieces(tokenizer: Tokenizer, before: np.ndarray, new: np.ndarray, log_p: np.ndarray) -> list[Piece]:
    """The new text, cut where characters are whole. before: what stands before it, with which it is decoded."""
    found, done, start = [], tokenizer.decode(before), 0
    for end in range(1, len(new) + 1):
        text = tokenizer.decode([*before, *new[:end]])
        if text.endswith(UNFINISHED) and end < len(new):
            continue
        same = same_beginning(done, text)
        found.append(Piece(text[same:], math.exp(float(np.sum(log_p[start:end], dtype=np.float64)))))
        done, start = text, end
    return found


def shown(text: str) -> str:
    """As a terminal may have it: what is not printable is escaped, but line feeds and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def lines(before: str, found: list[Piece], palette: Palette) -> Iterator[str]:
    """What was written, coloured after `before`; or, without colours, a line for each piece."""
    if palette.colours is not None:
        yield shown(before) + "".join(palette.on(shown(p.text), level_of(p.probability)) for p in found)
        return
    if before:
        yield shown(before)
    for piece in found:
        yield f"{piece.probability:.4f}  {piece.text!r}"


def report(
    cfg: ModelConfig, params, tokenizer: Tokenizer, asked: Asked, news: list[np.ndarray], palette: Palette
) -> Iterator[str]:
    """Lines: a legend, then each text with its tokens' probabilities and what they come to."""
    yield legend(palette)
    log_p = log_probabilities(cfg, params, asked.prompts, news, known=tokenizer.vocab_size, sources=asked.sources)
    for before, new, each in zip(asked.shown, news, log_p, strict=True):
        yield from lines(tokenizer.decode(before), pieces(tokenizer, before, new, each), palette)
        yield summary(each)


def legend(palette: Palette) -> str:
    """What the colours, or the numbers, are."""
    if palette.colours is None:
        return "each line: the probability of a token given all before it, before temperature and limits"
    swatches = " ".join(palette.on(f" {level.least:.0%} " if level.least else " less ", level) for level in LEVELS)
    return f"probability of a token, from: {swatches} (before temperature and limits)"


def summary(log_p: np.ndarray) -> str:
    """One line of all tokens of a text."""
    if not len(log_p):
        return "nothing was written"
    mean = float(np.mean(log_p, dtype=np.float64))
    return (
        f"{len(log_p)} tokens, perplexity {math.exp(min(-mean, 700.0)):.4f}, least probable {math.exp(log_p.min()):.4f}"
    )
