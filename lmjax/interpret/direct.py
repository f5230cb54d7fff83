"""Direct logit attribution (Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021): the last
residual stream as a sum of what each head and layer wrote into it, and a logit as the sum of what each says of it.

What is not linear on the way is frozen at what it was for this text: a norm's spread, so that it only scales and
centres, and of an activation f(x) the ratio f(x) / x. Biases are components of their own."""

from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.batching import Text
from lmjax.interpret.attribution import Attribution, check_plain, place_of, token_of
from lmjax.interpret.capture import LOGITS, Model, Read, chosen, forward, read
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import activate
from lmjax.models.norms import LayerNorm, RMSNorm

# what writes into the residual stream, and what each head reads from the texts
WRITERS = ("hook_*embed", "blocks.*attn.hook_z", "blocks.*.hook_mlp_out")
# so many places have all their components in memory at one time
PLACES = 32
EMBEDDINGS = {"hook_embed": "embed", "hook_pos_embed": "pos_embed", "hook_token_type_embed": "token_type_embed"}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Parts:
    """Components of a vector (..., D), which is their sum. array: (C, ..., D) in float32."""

    names: tuple[str, ...] = field(metadata={"static": True})
    array: jax.Array

    def plus(self, names: list[str], array: jax.Array) -> "Parts":
        like = self.array.shape[1:]
        return Parts((*self.names, *names), jnp.concatenate([self.array, jnp.broadcast_to(array, (len(names), *like))]))

    def through(self, norm: LayerNorm | RMSNorm, weights: dict, name: str) -> "Parts":
        """Behind a norm whose spread is frozen; its bias, where it has one, is a component."""
        array, total = self.array, self.array.sum(axis=0)
        if isinstance(norm, LayerNorm):
            array, total = (x - x.mean(axis=-1, keepdims=True) for x in (array, total))
        scale = weights["scale"] + (1 if isinstance(norm, RMSNorm) and norm.offset else 0)
        spread = jax.lax.rsqrt(jnp.mean(total * total, axis=-1, keepdims=True) + norm.epsilon)
        return Parts(self.names, array * spread * scale).biased(weights, name)

    def mapped(self, weights: dict, name: str) -> "Parts":
        """Behind x W + b."""
        return Parts(self.names, self.array @ weights["kernel"]).biased(weights, name)

    def frozen(self, function) -> "Parts":
        """Behind an activation, each times the ratio that it has for their sum."""
        total = self.array.sum(axis=0)
        ratio = jnp.where(total == 0, 0.0, function(total) / jnp.where(total == 0, 1.0, total))
        return Parts(self.names, self.array * ratio)

    def biased(self, weights: dict, name: str) -> "Parts":
        return self.plus([f"{name} bias"], weights["bias"]) if "bias" in weights else self


def components(
    model: Model, text: Text | jax.Array | Read, *, source: Text | jax.Array | None = None
) -> tuple[tuple[str, ...], jax.Array]:
    """(names, stack (C, B, T, D)), which sums to the residual stream behind the last block. L0H3 is head 3 of layer 0,
    "L0 cross H3" one that attends to the encoder; of norms behind a layer or a block each component is what they made
    of it. Raises UserError for packed weights, and as `capture.read`."""
    check_plain(model)
    found = forward(model.cfg, model.params, read(model, text, source), chosen(model, WRITERS), {})
    parts = _components(model.cfg, model.params, found)
    return parts.names, parts.array


def direct_attribution(
    model: Model, text: Text | jax.Array | Read, *, target: int | str, against: int | str | None = None,
    position: int | None = None, row: int = 0, source: Text | jax.Array | None = None,
) -> Attribution:  # fmt: skip
    """What each component (`components`), and each bias behind them, gives to the logit of `target` at that position of
    that text, less the logit of `against` where there is one; before the cap, where the model has one. target, against:
    ids, texts of one token, or of a model of labels their numbers or names. position: see `place_of`. Raises UserError
    as `components`, and for another position, row or token."""
    check_plain(model)
    rows = read(model, text, source)
    place = place_of(model, rows, row, position)
    target, against = token_of(model, target), None if against is None else token_of(model, against)
    uncapped = replace(model.cfg, logit_cap=None)
    found = forward(uncapped, model.params, rows, chosen(model, [*WRITERS, LOGITS]), {})
    said, total = _said(model.cfg, model.params, found, row, place, target, against)
    return Attribution(said.names, np.asarray(said.array), float(total), place, target, against)


def direct_attributions(
    model: Model, found: dict[str, jax.Array], targets_T: np.ndarray, *, row: int = 0
) -> tuple[tuple[str, ...], np.ndarray]:
    """(names, values (T, C)): `direct_attribution` at every place of one text, to the logit of another target each.
    found: what stood at WRITERS."""
    check_plain(model)
    found = {site: found[site][row] for site in chosen(model, WRITERS)}
    parts = _said_everywhere(model.cfg, model.params, found, jnp.asarray(targets_T))
    return parts.names, np.asarray(parts.array)


@partial(jax.jit, static_argnames="cfg")
def _said_everywhere(cfg: ModelConfig, params: dict, found: dict[str, jax.Array], targets_T: jax.Array) -> Parts:
    """array (T, C)."""
    return jax.lax.map(lambda one: _shares(cfg, params, *one, None), (found, targets_T), batch_size=PLACES)


@partial(jax.jit, static_argnames="cfg")
def _components(cfg: ModelConfig, params: dict, found: dict[str, jax.Array]) -> Parts:
    """found: what stood at WRITERS, of any leading axes."""
    params, found = transformer.apart(params), {site: x.astype(jnp.float32) for site, x in found.items()}
    there = [site for site in EMBEDDINGS if site in found]
    stream = Parts(tuple(EMBEDDINGS[site] for site in there), jnp.stack([found[site] for site in there]))
    if cfg.embedding_norm:
        stream = stream.through(cfg.norm, params["embedding_norm"], "embedding norm")
    for i, weights in enumerate(params["blocks"]):
        stream = _attended(cfg, stream, weights, "attention", found[f"blocks.{i}.attn.hook_z"], f"L{i}", "attn")
        if cfg.encoder_layers:
            z = found[f"blocks.{i}.cross_attn.hook_z"]
            stream = _attended(cfg, stream, weights, "cross_attention", z, f"L{i} cross ", "cross attn")
        stream = stream.plus([f"L{i} mlp"], found[f"blocks.{i}.hook_mlp_out"])
        if not cfg.norm_first:
            stream = stream.through(cfg.norm, weights["feedforward_norm"], f"L{i} mlp norm")
    return stream


def _attended(cfg: ModelConfig, stream: Parts, weights: dict, module: str, z, heads: str, name: str) -> Parts:
    """With what the heads of a layer write. z: (..., N, H). heads: what comes before H and a head's number."""
    layer = f"{heads.split()[0]} {name}"
    out = weights[module]["out"]
    written = Parts(
        tuple(f"{heads}H{n}" for n in range(cfg.heads)), jnp.einsum("...NH,NHD->N...D", z, out["kernel"])
    ).biased(out, layer)
    if cfg.post_norms:
        written = written.through(cfg.norm, weights[f"{module}_post_norm"], f"{layer} norm")
    stream = stream.plus(list(written.names), written.array)
    return stream if cfg.norm_first else stream.through(cfg.norm, weights[f"{module}_norm"], f"{layer} norm")


@partial(jax.jit, static_argnames="cfg")
def _said(cfg: ModelConfig, params: dict, found: dict[str, jax.Array], row, place, target, against):
    """What `direct_attribution` says of one place: (components of a logit, array (C,), the logit)."""
    found = {site: x[row, place] for site, x in found.items()}
    total = _apart(found.pop(LOGITS), target, against)
    return _shares(cfg, params, found, target, against), total


def _apart(table, target, against):
    """What it has for the one, less what it has for the other, where there is one."""
    return table[target] - (0.0 if against is None else table[against])


def _shares(cfg: ModelConfig, params: dict, found: dict[str, jax.Array], target, against) -> Parts:
    """Components of a logit, array (C,). found: what stood at WRITERS at its place."""
    parts = _components(cfg, params, found)
    if cfg.norm_first:
        parts = parts.through(cfg.norm, params["final_norm"], "final norm")
    if cfg.scaled_output:
        parts = Parts(parts.names, parts.array * cfg.width**-0.5)
    bias_V = None
    if cfg.outputs:
        if cfg.pooler:
            parts = parts.mapped(params["pooler"]["dense"], "pooler").frozen(jnp.tanh)
        dense = params["outputs"]["dense"]
        matrix_VD, bias_V = dense["kernel"].T, dense.get("bias")
    else:
        matrix_VD = transformer.unembedding(cfg, params)
        if cfg.masked_head:
            head = params["masked_head"]
            parts = parts.mapped(head["dense"], "masked head").frozen(partial(activate, name=cfg.masked_head))
            parts, bias_V = parts.through(cfg.norm, head["norm"], "masked head norm"), head["bias"]
    values_C = parts.array @ _apart(matrix_VD, target, against)
    if bias_V is None:
        return Parts(parts.names, values_C)
    return Parts((*parts.names, "bias of the unembedding"), jnp.append(values_C, _apart(bias_V, target, against)))
