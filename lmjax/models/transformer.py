"""The Transformer: tokens to the vectors from which tokens are predicted."""

import functools
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.errors import UserError
from lmjax.models import positions as pos
from lmjax.models.autoencoder import AutoencoderLayer
from lmjax.models.blocks import Block, Seen, stack
from lmjax.models.cache import LayerCache, slots
from lmjax.models.config import ModelConfig
from lmjax.models.cross_attention import CrossAttentionLayer, Source
from lmjax.models.feedforward import Experts
from lmjax.models.heads import MaskedHead, Outputs, Pooler
from lmjax.models.lora import is_adapted
from lmjax.models.norms import Normalise
from lmjax.models.packed import Packed, product
from lmjax.models.projection import contract
from lmjax.models.tap import PATCHES, PATTERNS, TAPS, Patch, by_site, nested, of_layers, stacked, tap
from lmjax.sharding import Named, constrain, weight


class Transformer(nn.Module):
    """Called through `hidden` below.

    training: dropout is on and takes the rng "dropout". Positions must be below cfg.context: a gather clamps
    silently, so whoever makes positions checks them (data, generate). With a cache, the keys of these
    tokens are written into it and the queries read all of it; segments are then not used.
    """

    cfg: ModelConfig
    training: bool = False

    def setup(self):
        cfg = self.cfg
        init = nn.initializers.normal(cfg.init_std)
        self.embedding = weight(self, "embedding", init, ("vocab", "embed"), (cfg.vocab, cfg.width))
        if isinstance(cfg.positions, pos.Learned):
            shape = (cfg.context + cfg.positions.offset, cfg.width)
            self.position_table = weight(self, "positions", init, ("positions", "embed"), shape)
        if isinstance(cfg.positions, pos.Relative):
            shape = (cfg.positions.buckets, cfg.heads)
            self.relative_table = weight(self, "relative", init, (None, "heads"), shape)
        if cfg.token_types:
            self.type_table = weight(self, "token_types", init, (None, "embed"), (cfg.token_types, cfg.width))
        if cfg.embedding_norm:
            self.embedding_norm = Normalise(cfg.norm)
        given = jax.tree.leaves(self.variables.get("params", {}).get("blocks", {}), is_leaf=is_adapted)
        self.blocks = stack(cfg, self.training, "blocks", adapted=any(map(is_adapted, given)))
        if cfg.norm_first:
            self.final_norm = Normalise(cfg.norm)
        if cfg.masked_head:
            self.masked_head = MaskedHead(cfg)
        if cfg.pooler:
            self.pooler = Pooler(cfg)
        if cfg.outputs:
            self.outputs = Outputs(cfg)
        if cfg.autoencoder:
            self.autoencoder = AutoencoderLayer(cfg)
        self.dropout = nn.Dropout(cfg.dropout, deterministic=not self.training)
        if not cfg.tied and not self.has_variable("params", "packed_unembedding"):
            self.unembedding = weight(self, "unembedding", init, ("vocab", "embed"), (cfg.vocab, cfg.width))

    def __call__(
        self, tokens_BT, positions_BT, segments_BT=None, types_BT=None, source: Source | None = None,
        cache: LayerCache | None = None, counted_BT=None,
    ):  # fmt: skip
        x_BTD, seen = self.embed(tokens_BT, positions_BT, segments_BT, types_BT, source, cache and slots(cache))
        seen = seen._replace(counted_BT=counted_BT)
        x_BTD, (cache, routing) = self.blocks(x_BTD, seen, jnp.arange(self.cfg.layers), cache)
        return self.finish(x_BTD), cache, routing

    def whole(self, tokens_BT, positions_BT):
        """Every part once, which makes its parameters."""
        source = Source(jnp.zeros((1, 1, self.cfg.width), self.cfg.dtype)) if self.cfg.encoder_layers else None
        hidden_BTD, _, _ = self(tokens_BT, positions_BT, source=source)
        for name in ("masked_head", "pooler", "outputs"):
            if getattr(self.cfg, name):
                getattr(self, name)(hidden_BTD)
        if self.cfg.autoencoder:
            self.autoencoder(jnp.zeros((1, self.cfg.autoencoder.width(self.cfg))))

    def embed(
        self, tokens_BT, positions_BT, segments_BT, types_BT=None, source: Source | None = None, room: int | None = None
    ) -> tuple[jax.Array, Seen]:
        """The residual stream before the first block, and what all blocks know. types_BT: None: all are of type 0.
        room: slots of the cache; None: there is none."""
        cfg = self.cfg
        # a table is gathered over "fsdp" before it is read: the compiler would move the activations instead;
        # and cast after it is read, so that the gradients of a frequent token are summed in float32
        x_BTD = constrain(self.embedding, "vocab", None)[tokens_BT].astype(cfg.dtype)
        if cfg.scaled_embedding:
            x_BTD = x_BTD * jnp.asarray(cfg.width**0.5, cfg.dtype)
        x_BTD = tap(self, "hook_embed", x_BTD)
        match cfg.positions:
            case pos.Learned(offset=offset):
                table_TD = constrain(self.position_table, None, None)
                x_BTD = x_BTD + tap(self, "hook_pos_embed", table_TD[positions_BT + offset].astype(cfg.dtype))
            case pos.Sinusoidal():
                x_BTD = x_BTD + tap(self, "hook_pos_embed", pos.sinusoid(positions_BT, cfg.width).astype(cfg.dtype))
        if cfg.token_types:
            table_ID = constrain(self.type_table, None, None).astype(cfg.dtype)
            types_BTD = jnp.broadcast_to(table_ID[0], x_BTD.shape) if types_BT is None else table_ID[types_BT]
            x_BTD = x_BTD + tap(self, "hook_token_type_embed", types_BTD)
        if cfg.embedding_norm:
            x_BTD = self.embedding_norm(x_BTD)
        # once for each kind of layer, not for each layer
        angles = {r: r and pos.rotary_angles(positions_BT, cfg.head_width, r) for r in dict.fromkeys(cfg.rotaries)}
        x_BTD = self.dropout(constrain(x_BTD, "batch", "length", "embed"))
        angles = tuple(angles[rotary] for rotary in cfg.rotaries)
        return x_BTD, Seen(
            positions_BT, segments_BT, angles, bias_BNTS=self.relative_bias(positions_BT, room), source=source
        )

    def relative_bias(self, positions_BT, room: int | None) -> jax.Array | None:
        """(B or 1, N, T, S) of all layers' scores; None where positions are not Relative. Without a cache S = T: places
        that see one another lie as far apart in the row as in their text, packed or not."""
        cfg = self.cfg
        if not isinstance(cfg.positions, pos.Relative):
            return None
        slots_S = jnp.arange(positions_BT.shape[1] if room is None else room)
        at_BT = slots_S[None] if room is None else positions_BT
        table_IN = constrain(self.relative_table, None, "heads")
        bias_BNTS = pos.relative_bias(cfg.positions, table_IN, at_BT, slots_S, cfg.causal)
        return constrain(bias_BNTS, None if room is None else "batch", "heads", "length", None)

    def finish(self, x_BTD) -> jax.Array:
        """The final norm and the scale, where there are any."""
        x_BTD = self.final_norm(x_BTD) if self.cfg.norm_first else x_BTD
        return x_BTD * jnp.asarray(self.cfg.width**-0.5, x_BTD.dtype) if self.cfg.scaled_output else x_BTD


def encode(cfg: ModelConfig, params, tokens_BS, positions_BS, segments_BS=None, *, dropout_key=None) -> Source:
    """What the decoder attends to (cfg.encoder_layers). With a dropout_key, dropout is on; `hidden` and `trained` may
    have the same one."""
    # the masks of the two stacks must not be the same ones
    key = None if dropout_key is None else jax.random.fold_in(dropout_key, 1)
    own = {"embedding": params["embedding"], **params["encoder"]}
    hidden_BSD, _ = hidden(cfg.encoder, own, tokens_BS, positions_BS, segments_BS, dropout_key=key)
    return Source(hidden_BSD, segments_BS)


def with_source(cfg: ModelConfig, params, cache, source: Source):
    """The cache with every layer's keys and values of the source."""

    def kept(weights):
        layer = CrossAttentionLayer(cfg, training=False)
        return layer.apply({"params": weights["cross_attention"]}, source, method="kept")

    if isinstance(params["blocks"], tuple):
        return tuple(
            replace(layer, source=kept(weights)) for layer, weights in zip(cache, params["blocks"], strict=True)
        )
    return replace(cache, source=jax.lax.map(kept, params["blocks"]))


def hidden(
    cfg: ModelConfig, params, tokens_BT, positions_BT, segments_BT=None, *, types_BT=None, source: Source | None = None,
    cache=None, dropout_key=None, patches: dict[str, Patch] | None = None,
):  # fmt: skip
    """(hidden_BTD, cache). With a dropout_key, dropout is on. Experts are dropless. types_BT: see `Transformer.embed`.
    source: of a decoder that has an encoder, where no cache has it (`with_source`). Layers that lie apart see no
    dropout. patches: of such layers, as `captured`; attention weights are not among these sites."""
    _check_source(cfg, source, cache)
    tokens = (tokens_BT, positions_BT, segments_BT, types_BT, source)
    if isinstance(params["blocks"], tuple):
        hidden_BTD, cache, _ = _layer_by_layer(cfg, params, tokens, cache, patches)
        return hidden_BTD, cache
    assert not patches, "stacked layers are patched by `captured`"
    hidden_BTD, cache, _ = _apply(cfg, params, dropout_key, *tokens, cache)
    return hidden_BTD, cache


def _check_source(cfg: ModelConfig, source: Source | None, cache) -> None:
    if cache is not None:
        source = source or (cache[0] if isinstance(cache, tuple) else cache).source
    if cfg.encoder_layers and source is None:
        raise UserError(
            f"model.encoder_layers is {cfg.encoder_layers}, and there is no source for the decoder to attend to"
        )


def trained(
    cfg: ModelConfig, params, tokens_BT, positions_BT, segments_BT=None, *, types_BT=None,
    source: Source | None = None, dropout_key=None,
):  # fmt: skip
    """(hidden_BTD, routing) as training has it: experts have a capacity, and routing is the `Routing` of all layers,
    arrays (L,); None where there are no experts. Padding (segment 0) is routed, and counted nowhere."""
    _check_source(cfg, source, None)
    counted_BT = None
    if isinstance(cfg.feedforward, Experts):
        counted_BT = jnp.ones(tokens_BT.shape, bool) if segments_BT is None else segments_BT != 0
    hidden_BTD, _, routing = _apply(
        cfg, params, dropout_key, tokens_BT, positions_BT, segments_BT, types_BT, source=source, counted_BT=counted_BT
    )
    return hidden_BTD, routing


def _apply(cfg: ModelConfig, params, dropout_key, *arguments, **more):
    model = Transformer(cfg, training=dropout_key is not None)
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    return model.apply({"params": params}, *arguments, **more, rngs=rngs)


def apart(params) -> dict:
    """The parameters with "blocks" as a tuple of layers, which is read faster than slices of a stack: for inference."""
    if isinstance(params["blocks"], tuple):
        return params
    blocks = params["blocks"]
    layers = len(jax.tree.leaves(blocks)[0])
    if "encoder" in params:
        params = params | {"encoder": apart(params["encoder"])}
    return params | {"blocks": tuple(jax.tree.map(lambda x, i=i: x[i], blocks) for i in range(layers))}


def captured(
    cfg: ModelConfig, params, tokens_BT, positions_BT, segments_BT=None, *, types_BT=None, source: Source | None = None,
    patches: dict[str, Patch] | None = None, patterns: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:  # fmt: skip
    """(hidden_BTD, what stood at each `tap`), by TransformerLens's names, in the order of computation; nothing of the
    sites is computed unless used. patches: by site, what becomes of what stands there; sites have what came of it.
    patterns: attention scores and weights (B, N, T, S) are among the sites, and attention is computed by the formula
    as it stands. Layers may be stacked or apart."""
    _check_source(cfg, source, None)
    tokens, patches = (tokens_BT, positions_BT, segments_BT, types_BT, source), patches or {}
    if isinstance(params["blocks"], tuple):
        hidden_BTD, _, sites = _layer_by_layer(cfg, params, tokens, None, patches, patterns)
        return hidden_BTD, sites
    names = site_shapes(cfg, 1, 2, 2 if cfg.encoder_layers else None)
    outside, inside = of_layers(patches)
    shapes = {name.removeprefix("blocks.0."): shape for name, shape in names.items() if name.startswith("blocks.0.")}
    collection = nested(outside) | {"blocks": stacked(inside, cfg.layers, shapes)}
    (hidden_BTD, _, _), state = Transformer(cfg).apply(
        {"params": params, PATCHES: collection}, *tokens, mutable=[TAPS, *[PATTERNS] * patterns]
    )
    kept = by_site(state)
    for name, x_LBT in [(name, x) for name, x in kept.items() if name.startswith("blocks.")]:
        kept |= {f"blocks.{i}.{name.removeprefix('blocks.')}": x_LBT[i] for i in range(cfg.layers)}
    return hidden_BTD, {name: kept[name] for name in names if name in kept}


@functools.cache
def site_shapes(cfg: ModelConfig, B: int = 1, T: int = 2, S: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """What stands at each site of rows of T tokens, in the order of computation. S: length of the source that a decoder
    attends to."""
    source = None
    if cfg.encoder_layers:
        source = Source(jax.ShapeDtypeStruct((B, S or 1, cfg.width), cfg.dtype))
    shapes = {}

    def run(params, tokens_BT, source):
        found = captured(cfg, apart(params), tokens_BT, tokens_BT, source=source, patterns=True)[1]
        # JAX sorts a dict that it returns
        shapes.update({name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in found.items()})

    jax.eval_shape(run, abstract_params(cfg), jax.ShapeDtypeStruct((B, T), jnp.int32), source)
    return shapes


def _layer_by_layer(
    cfg: ModelConfig, params, tokens: tuple, cache: tuple | None, patches: dict[str, Patch] | None = None,
    patterns: bool = False,
):  # fmt: skip
    """(hidden_BTD, cache, sites) by the same modules without the scan; nothing of `sites` is computed unless used.
    tokens: the arguments of `Transformer.embed`. The rest: `captured`."""
    outside, inside = of_layers(patches or {})
    rest = {"params": {name: value for name, value in params.items() if name != "blocks"}, PATCHES: nested(outside)}
    model, layers = Transformer(cfg), params["blocks"]
    kept = [TAPS, *[PATTERNS] * patterns]
    room = None if cache is None else slots(cache)
    (x_BTD, seen), state = model.apply(rest, *tokens, room=room, method="embed", mutable=kept)
    sites, caches = by_site(state), []
    for layer, weights in enumerate(layers):
        before = None if cache is None else cache[layer]
        own = {"params": weights, PATCHES: nested(inside.get(layer, {}))}
        (x_BTD, (after, _)), state = Block(cfg, training=False).apply(own, x_BTD, seen, layer, before, mutable=kept)
        sites |= by_site(state, f"blocks.{layer}.")
        caches.append(after)
    hidden_BTD, state = model.apply(rest, x_BTD, method="finish", mutable=kept)
    return hidden_BTD, None if cache is None else tuple(caches), sites | by_site(state)


def unembedding(cfg: ModelConfig, params) -> jax.Array | Packed:
    """The (V, D) matrix that turns hidden vectors into logits: hidden @ this^T."""
    if "packed_unembedding" in params:
        return params["packed_unembedding"]
    return params["embedding" if cfg.tied else "unembedding"]


def masked_logits(cfg: ModelConfig, params, hidden_BTD: jax.Array) -> jax.Array:
    """(..., V) in float32: the log-probabilities of the token that stands there, up to a constant; by way of the masked
    head, where there is one."""
    x, bias_V = before_unembedding(cfg, params, hidden_BTD)
    raw_V = logits(unembedding(cfg, params), x, None)
    return capped(raw_V, cfg.logit_cap) if bias_V is None else raw_V + bias_V


def before_unembedding(cfg: ModelConfig, params, hidden: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """(..., D) by way of the masked head, and what is added to the logits (V,); without that head hidden and None."""
    if not cfg.masked_head:
        return hidden, None
    return MaskedHead(cfg).apply({"params": params["masked_head"]}, hidden)


def pooled(cfg: ModelConfig, params, hidden_BTD: jax.Array) -> jax.Array:
    """(B, D), of each row's first token (cfg.pooler)."""
    return Pooler(cfg).apply({"params": params["pooler"]}, hidden_BTD[:, 0])


def outputs(cfg: ModelConfig, params, hidden: jax.Array, *, dropout_key=None) -> jax.Array:
    """(..., D) to (..., C) in float32 (cfg.outputs), by way of the pooler where there is one. dropout_key: of dropout
    before the last layer, as in BERT's fine-tuning; None: there is none."""
    if cfg.pooler:
        hidden = Pooler(cfg).apply({"params": params["pooler"]}, hidden)
    if dropout_key is not None:
        dropout = nn.Dropout(cfg.dropout, deterministic=False)
        hidden = dropout.apply({}, hidden, rngs={"dropout": dropout_key})
    return Outputs(cfg).apply({"params": params["outputs"]}, hidden)


def logits(matrix_VD: jax.Array | Packed, hidden: jax.Array, cap: float | None) -> jax.Array:
    """(..., V) in float32: the log-probabilities of the next token, up to a constant. cap: see cfg.logit_cap."""
    x = product(hidden, matrix_VD) if isinstance(matrix_VD, Packed) else _raw_logits(hidden, matrix_VD)
    return capped(x, cap)


@jax.custom_vjp
def _raw_logits(hidden: jax.Array, matrix_VD: jax.Array) -> jax.Array:
    """hidden @ matrix^T in float32. The gradient of the logits is multiplied in hidden's dtype, as in the loss by
    chunks: JAX would multiply it in float32 with a matrix made float32 again."""
    x = hidden.ndim - 1
    over = (((x,), (1,)), ((), ()))
    return jax.lax.dot_general(hidden, matrix_VD.astype(hidden.dtype), over, preferred_element_type=jnp.float32)


def _raw_logits_backward(saved, d_logits):
    hidden, matrix_VD = saved
    d_logits, rows = d_logits.astype(hidden.dtype), tuple(range(hidden.ndim - 1))
    d_VD = jax.lax.dot_general(d_logits, hidden, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)
    d_hidden = contract(d_logits, matrix_VD.astype(hidden.dtype), (hidden.ndim - 1,), (0,))
    return d_hidden, d_VD.astype(matrix_VD.dtype)


_raw_logits.defvjp(
    lambda hidden, matrix_VD: (_raw_logits(hidden, matrix_VD), (hidden, matrix_VD)), _raw_logits_backward
)


def capped(x: jax.Array, cap: float | None) -> jax.Array:
    """cap x tanh(x / cap); None: x itself."""
    return x if cap is None else cap * jnp.tanh(x / cap)


@partial(jax.jit, static_argnames="cfg")
def _init(cfg: ModelConfig, key):
    """Fresh parameters, each with its axes' names. Jitted: parameters, shapes and names have one trace in common."""
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    params = Transformer(cfg).init(key, tokens_BT, tokens_BT, method="whole")["params"]
    if cfg.equal_keys:
        weights = params["blocks"]["attention"]
        weights["k"]["kernel"] = weights["k"]["kernel"].replace_boxed(weights["q"]["kernel"].value)
    if not cfg.encoder_layers:
        return params
    encoder = _init(cfg.encoder, jax.random.fold_in(key, 1))
    return params | {"encoder": {name: part for name, part in encoder.items() if name != "embedding"}}


def init_params(cfg: ModelConfig, key):
    """Fresh float32 parameters, a tree of plain arrays."""
    return nn.unbox(_init(cfg, key))


def _abstract(cfg: ModelConfig):
    return jax.eval_shape(partial(_init, cfg), jax.eval_shape(lambda: jax.random.key(0)))


@functools.cache
def abstract_params(cfg: ModelConfig):
    """The shapes of the parameters, without computing anything."""
    return nn.unbox(_abstract(cfg))


@functools.cache
def param_names(cfg: ModelConfig):
    """For every parameter, the tuple of its axes' logical names."""
    boxed = _abstract(cfg)
    return jax.tree.map(lambda box: box.names, boxed, is_leaf=lambda x: isinstance(x, Named))
