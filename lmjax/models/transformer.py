"""The decoder-only Transformer: tokens to the vectors from which the next token is predicted."""

import functools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.models import positions as pos
from lmjax.models.blocks import stack
from lmjax.models.cache import LayerCache
from lmjax.models.config import ModelConfig
from lmjax.models.norms import Normalise
from lmjax.sharding import Named, constrain, named


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
        self.embedding = self.param("embedding", named(init, ("vocab", "embed")), (cfg.vocab, cfg.width))
        if isinstance(cfg.positions, pos.Learned):
            self.position_table = self.param("positions", named(init, ("length", "embed")), (cfg.context, cfg.width))
        self.blocks = stack(cfg, self.training, "blocks")
        self.final_norm = Normalise(cfg.norm)
        self.dropout = nn.Dropout(cfg.dropout, deterministic=not self.training)
        if not cfg.tied:
            self.unembedding = self.param("unembedding", named(init, ("vocab", "embed")), (cfg.vocab, cfg.width))

    def __call__(self, tokens_BT, positions_BT, segments_BT=None, cache: LayerCache | None = None):
        cfg = self.cfg
        # the table is gathered over "fsdp" before it is read: the compiler would move the activations instead
        # and cast after it is read, so that the gradients of a frequent token are summed in float32
        x_BTD = constrain(self.embedding, "vocab", None)[tokens_BT].astype(cfg.dtype)
        angles = None
        match cfg.positions:
            case pos.Learned():
                x_BTD = x_BTD + self.position_table[positions_BT].astype(cfg.dtype)
            case pos.Sinusoidal():
                x_BTD = x_BTD + pos.sinusoid(positions_BT, cfg.width).astype(cfg.dtype)
            case pos.Rotary(theta=theta):
                angles = pos.rotary_angles(positions_BT, cfg.head_width, theta)
        x_BTD = self.dropout(constrain(x_BTD, "batch", "length", "embed"))
        x_BTD, cache = self.blocks(x_BTD, positions_BT, segments_BT, angles, cache)
        return self.final_norm(x_BTD), cache


def hidden(cfg: ModelConfig, params, tokens_BT, positions_BT, segments_BT=None, *, cache=None, dropout_key=None):
    """(hidden_BTD, cache). With a dropout_key, dropout is on: this is training."""
    model = Transformer(cfg, training=dropout_key is not None)
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    return model.apply({"params": params}, tokens_BT, positions_BT, segments_BT, cache, rngs=rngs)


def unembedding(cfg: ModelConfig, params) -> jax.Array:
    """The (V, D) matrix that turns hidden vectors into logits: hidden @ this^T."""
    return params["embedding" if cfg.tied else "unembedding"]


def logits(matrix_VD: jax.Array, hidden: jax.Array) -> jax.Array:
    """(..., V) in float32: the log-probabilities of the next token, up to a constant."""
    return jnp.einsum("...D,VD->...V", hidden, matrix_VD.astype(hidden.dtype), preferred_element_type=jnp.float32)


def _init(cfg: ModelConfig, key):
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    return Transformer(cfg).init(key, tokens_BT, tokens_BT)["params"]


@partial(jax.jit, static_argnames="cfg")
def init_params(cfg: ModelConfig, key):
    """Fresh float32 parameters, a tree of plain arrays."""
    return nn.unbox(_init(cfg, key))


@functools.cache
def abstract_params(cfg: ModelConfig):
    """The shapes of the parameters, without computing anything."""
    return jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))


@functools.cache
def param_names(cfg: ModelConfig):
    """For every parameter, the tuple of its axes' logical names."""
    boxed = jax.eval_shape(lambda: _init(cfg, jax.random.key(0)))
    return jax.tree.map(lambda box: box.names, boxed, is_leaf=lambda x: isinstance(x, Named))
