"""Path patching (arXiv:2211.00593, appendix B; arXiv:2304.05969): what one head tells another directly, or the logits,
with everything between them held as it was."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from lmjax.batching import Text
from lmjax.errors import UserError
from lmjax.interpret.capture import LOGITS, Model, Read, chosen, forward
from lmjax.interpret.patching import Kind, masks
from lmjax.interpret.runs import Metric, pair, run_all
from lmjax.models.config import ModelConfig
from lmjax.models.tap import Patch

Z = Kind("attn.hook_z", head=2)


class Receiver(NamedTuple):
    """What a head reads: its queries, keys or values. head: of keys and values that several heads share, their own
    number."""

    layer: int
    head: int
    what: Literal["q", "k", "v"]

    @property
    def site(self) -> str:
        return f"blocks.{self.layer}.attn.hook_{self.what}"


def path_patching(
    model: Model, clean: Text | jax.Array | Read, corrupt: Text | jax.Array | Read, metric: Metric, *,
    receivers: Sequence[Receiver] | None = None, held: Sequence[str] = ("mlp_out",), scaled: bool = True,
    chunk: int | None = None, say: Callable[[str], None] = print,
) -> jax.Array:  # fmt: skip
    """(L, N): of each head as the sender the metric of the corrupt text's run where the receivers read what they would
    if that head alone gave what it gives in the clean run. Its way there is the residual stream, through no other head:
    those are held at the corrupt run.

    receivers: None: the logits themselves. held: what is held beside heads: ("mlp_out",), all feed-forward layers, so
    that the way is direct; (): they answer to what they read, and count as part of the way, as in the paper. The other
    arguments and errors: `activation_patching`, and UserError for a receiver that there is not.
    """
    cfg = model.cfg
    _check(model, receivers)
    kinds = ["attn.hook_z", *(f"hook_{name}" for name in held)]
    kinds += ["hook_cross_attn_out"] if cfg.encoder_layers else []
    names = chosen(model, [f"blocks.*.{kind}" for kind in kinds])
    both = pair(model, clean, corrupt, metric, names)
    senders = [name for name in names if name.endswith(Z.site)]
    sizes = (cfg.layers, both.rows.shape[1], cfg.heads)

    def one(arguments, index):
        params, rows, clean, corrupt = arguments
        layer, head = jnp.unravel_index(index, (cfg.layers, cfg.heads))
        sends_L = masks(Z, 4, sizes, sizes[1], (layer, 0, head), positions=False)
        patches = {name: Patch(x) for name, x in corrupt.items()}
        for name, where in zip(senders, sends_L, strict=True):
            patches[name] = Patch(jnp.where(where, clean[name], corrupt[name]))
        return metric(_received(cfg, params, rows, patches, receivers))

    clean_at, corrupt_at = ({name: of[name] for name in names} for of in (both.clean, both.corrupt))
    told = f"path patching to {_told(receivers)}: {cfg.layers} layers x {cfg.heads} heads"
    passes = 1 if receivers is None else 2
    found = run_all(
        told, one, (both.params, both.rows, clean_at, corrupt_at), cfg.layers * cfg.heads, model=model,
        rows=both.rows, seconds=passes * both.seconds, chunk=chunk, say=say,
    )  # fmt: skip
    return (both.scaled(found) if scaled else found).reshape(cfg.layers, cfg.heads)


def _received(cfg: ModelConfig, params, rows: Read, patches: dict, receivers: Sequence[Receiver] | None) -> jax.Array:
    """The logits; with receivers, of another run in which they alone are as in the run with these patches."""
    if receivers is None:
        return forward(cfg, params, rows, (LOGITS,), patches)[LOGITS]
    found = forward(cfg, params, rows, tuple(dict.fromkeys(one.site for one in receivers)), patches)
    theirs = {}
    for site, x_BTNH in found.items():
        heads = jnp.array([one.head for one in receivers if one.site == site])
        theirs[site] = Patch(x_BTNH, jnp.isin(jnp.arange(x_BTNH.shape[2]), heads)[:, None])
    return forward(cfg, params, rows, (LOGITS,), theirs)[LOGITS]


def _check(model: Model, receivers: Sequence[Receiver] | None) -> None:
    if receivers is None:
        return
    if not receivers:
        raise UserError("receivers is empty; expected at least one, or None for the logits")
    cfg = model.cfg
    for one in receivers:
        heads = cfg.heads if one.what == "q" else cfg.n_kv_heads
        if one.what not in ("q", "k", "v") or not (0 <= one.layer < cfg.layers and 0 <= one.head < heads):
            raise UserError(
                f"{one}: expected a layer below {cfg.layers}, a head below {heads}, and what it reads: q, k or v"
            )


def _told(receivers: Sequence[Receiver] | None) -> str:
    if receivers is None:
        return "the logits"
    return ", ".join(f"{one.what} of {one.layer}.{one.head}" for one in receivers)
