"""Reading and changing what stands inside a model while it reads a text.

Sites have TransformerLens's names: `blocks.3.hook_resid_post`, `blocks.0.attn.hook_pattern`; those of the encoder of an
encoder-decoder begin with `encoder.`. `logits` is one more: of the next token, of an encoder those of the token that
stands there, of a model of labels those of the labels.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.batching import Reader, Text
from lmjax.errors import UserError, path_text
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.models.cross_attention import Source
from lmjax.models.positions import in_rows
from lmjax.models.tap import OF_PATTERNS, Patch, check_sites
from lmjax.places import Place
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.sides import prompt_ids, source_ids, target_ids

LOGITS = "logits"
ENCODER = "encoder."
# of a decoder, at the places of the encoder's text
OF_SOURCE = ("cross_attn.hook_k", "cross_attn.hook_v")


class Model(Protocol):
    """What `lmjax.load` gives. path: where it lies, for messages."""

    cfg: ModelConfig
    params: dict
    tokenizer: Tokenizer | None
    path: Place


class Read(NamedTuple):
    """What a model reads. tokens: (B, T) ids, rows filled up on the right with 0. lengths: (B,) how many of a row
    count; None: all. source, source_lengths: the same of the encoder's text, where there is one."""

    tokens: jax.Array
    lengths: jax.Array | None = None
    source: jax.Array | None = None
    source_lengths: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, int, int | None]:
        """B, T and the length of the source."""
        return (*self.tokens.shape, None if self.source is None else self.source.shape[1])

    def lengths_at(self, site: str) -> np.ndarray:
        """(B,): how many of a row's places count at a site, of the text or of the source."""
        tokens, lengths = self.tokens, self.lengths
        if site.startswith(ENCODER) or site.endswith(OF_SOURCE):
            tokens, lengths = self.source, self.source_lengths
        B, T = tokens.shape
        return np.full(B, T) if lengths is None else np.asarray(lengths)


def read(model: Model, text: Text | jax.Array | Read, source: Text | jax.Array | None = None) -> Read:
    """A text, a list of texts, or ids (B, T) as they are; a text gets what the tokenizer puts around what this model
    reads. Ids that are traced are not looked at. Raises UserError as `lmjax.load(...)(text)` does."""
    if isinstance(text, Read):
        return text
    if (source is None) == bool(model.cfg.encoder_layers):
        expected = "a source, which the encoder reads" if source is None else "no source: there is no encoder"
        raise UserError(f"{path_text(model.path)}: expected {expected}")
    encode = prompt_ids if model.cfg.causal else source_ids
    if source is None:
        return Read(*_ids(model, text, encode))
    return Read(*_ids(model, text, partial(_target, model)), *_ids(model, source, source_ids))


def _target(model: Model, text: str, tokenizer: Tokenizer) -> np.ndarray:
    return target_ids(text, tokenizer, model.start)


def _ids(model: Model, text: Text | jax.Array, encode) -> tuple:
    if isinstance(text, jax.core.Tracer):
        return text, None
    reader = Reader(model.cfg, model.tokenizer, model.path)
    text = text if isinstance(text, str | list) else np.asarray(text)
    tokens, lengths = reader.filled_up(reader.rows(text, encode))
    return tokens, None if (lengths == tokens.shape[1]).all() else lengths


def sites(model: Model, length: int = 2) -> dict[str, tuple[int, ...]]:
    """The shape at each site for one text of so many tokens (and a source of as many), in the order of computation."""
    return {name: like.shape for name, like in _shapes(model.cfg, (1, length, length)).items()}


def _shapes(cfg: ModelConfig, shape: tuple[int, int, int | None]) -> dict[str, jax.ShapeDtypeStruct]:
    B, T, S = shape
    if not cfg.encoder_layers:
        return transformer.site_shapes(cfg, B, T, None)
    encoder = {ENCODER + name: like for name, like in transformer.site_shapes(cfg.encoder, B, S, None).items()}
    return encoder | transformer.site_shapes(cfg, B, T, S)


def chosen(model: Model, names: str | Sequence[str]) -> tuple[str, ...]:
    """The sites that these names mean, in the order of computation; a name may have *, as in blocks.*.hook_resid_post.
    Raises UserError for one that there is not, with the nearest that there is."""
    known = (*sites(model), LOGITS)
    names = [names] if isinstance(names, str) else names
    check_sites([name for name in names if not fnmatch.filter(known, name)], known)
    return tuple(name for name in known if any(fnmatch.fnmatchcase(name, one) for one in names))


def capture(
    model: Model, text: Text | jax.Array | Read, names: str | Sequence[str], *, source: Text | jax.Array | None = None,
    patches: Mapping[str, Patch | jax.Array] | None = None,
) -> dict[str, jax.Array]:  # fmt: skip
    """What stands at the sites of these names (`chosen`) while the model reads the text: (B, T, ...), attention weights
    (B, N, T, S). patches: as `patch` has them; a site has what became of it. Pure, and it may be called inside jax.jit
    with ids. Raises UserError for a site that there is not, a value that does not fit, and as `read`."""
    rows, names = read(model, text, source), chosen(model, names)
    found = forward(model.cfg, model.params, rows, names, fitting(model, rows, patches or {}))
    # JAX sorts a dict that it returns
    return {name: found[name] for name in names}


def patch(
    model: Model, text: Text | jax.Array | Read, patches: Mapping[str, Patch | jax.Array], *,
    source: Text | jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """The logits (B, T, V) where at each of these sites stands the value given for it, or what a `Patch` makes of what
    stood there. Pure; errors as those of `capture`."""
    return capture(model, text, LOGITS, source=source, patches=patches)[LOGITS]


def fitting(model: Model, rows: Read, patches: Mapping[str, Patch | jax.Array]) -> dict[str, Patch]:
    """Patches, each seen to fit its site. Raises UserError for a site that there is not, and for another shape."""
    if not patches:
        return {}
    known = _shapes(model.cfg, rows.shape)
    check_sites(patches, known)
    found = {site: one if isinstance(one, Patch) else Patch(one) for site, one in patches.items()}
    for site, one in found.items():
        for part, value in zip(Patch._fields, one, strict=True):
            if isinstance(value, str | bytes):
                raise UserError(f"{site}: a patch's {part} is {value!r}; expected numbers")
            shape, wanted = jnp.shape(value) if value is not None else (), known[site].shape
            try:
                fits = np.broadcast_shapes(shape, wanted) == wanted
            except ValueError:
                fits = False
            if not fits:
                raise UserError(f"{site}: a patch's {part} has shape {shape}; expected {wanted}, or what fills it")
    return found


@partial(jax.jit, static_argnames=("cfg", "names"))
def forward(cfg: ModelConfig, params, rows: Read, names: tuple[str, ...], patches: dict[str, Patch]) -> dict:
    """`capture` without its checks. names: of sites, without *."""
    patterns = any(name.endswith(OF_PATTERNS) for name in names)
    kept, source = {}, None
    if cfg.encoder_layers:
        inner = {site.removeprefix(ENCODER): one for site, one in patches.items() if site.startswith(ENCODER)}
        own = {"embedding": params["embedding"], **params["encoder"]}
        positions_BS, segments_BS = in_rows(rows.source, rows.source_lengths)
        hidden_BSD, found = transformer.captured(
            cfg.encoder, own, rows.source, positions_BS, segments_BS, patches=inner, patterns=patterns
        )
        kept |= {ENCODER + site: x for site, x in found.items()}
        source = Source(hidden_BSD, segments_BS)
    positions_BT, segments_BT = in_rows(rows.tokens, rows.lengths)
    outer = {site: one for site, one in patches.items() if not site.startswith(ENCODER)}
    hidden_BTD, found = transformer.captured(
        cfg, params, rows.tokens, positions_BT, None if cfg.causal else segments_BT, source=source, patches=outer,
        patterns=patterns,
    )  # fmt: skip
    kept |= found | {LOGITS: logits_of(cfg, params, hidden_BTD) if LOGITS in names else None}
    return {name: kept[name] for name in names}


def logits_of(cfg: ModelConfig, params, hidden_BTD: jax.Array) -> jax.Array:
    """What the model says at each place: (B, T, V), of a model of labels (B, T, C)."""
    if cfg.outputs:
        return transformer.outputs(cfg, params, hidden_BTD)
    return transformer.masked_logits(cfg, params, hidden_BTD)
