"""The tuned lens (Belrose et al., arXiv:2303.08112): what the residual stream holds after each layer, read through an
affine map of that layer's own, which is trained to say what the whole model says."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax.batching import Text
from lmjax.errors import UserError, path_text
from lmjax.interop.tensor_files import TensorFile, write_tensors
from lmjax.interpret.attribution import check_slopes
from lmjax.interpret.capture import Model, Read, forward, read
from lmjax.interpret.residual import read_out, stream
from lmjax.models.config import ModelConfig

FILE = "tuned_lens.safetensors"
# the directions; how far a step goes is `train`'s
ADAM = optax.scale_by_adam()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TunedLens:
    """matrix: (L, D, D), bias: (L, D): of the stream before the first block and after each one but the last."""

    matrix: jax.Array
    bias: jax.Array

    def __call__(self, x_RBTD: jax.Array) -> jax.Array:
        """The rows of the residual stream, each through its map; the last, which has none, as it is."""
        mapped_LBTD = jnp.einsum("LBTD,LDE->LBTE", x_RBTD[:-1], self.matrix) + self.bias[:, None, None]
        return jnp.concatenate([mapped_LBTD.astype(x_RBTD.dtype), x_RBTD[-1:]])

    def check(self, model: Model) -> None:
        """Raises UserError where it is not of a model of this size."""
        wanted = (model.cfg.layers, model.cfg.width, model.cfg.width)
        if self.matrix.shape != wanted:
            raise UserError(
                f"a tuned lens of shape {self.matrix.shape}; expected {wanted}, for {path_text(model.path)}"
            )

    def save(self, directory: Path | str) -> None:
        """Into tuned_lens.safetensors."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        arrays = {name: np.asarray(x, np.float32) for name, x in (("matrix", self.matrix), ("bias", self.bias))}
        tensors = [(name, x.dtype, x.shape, lambda x=x: x) for name, x in arrays.items()]
        write_tensors(Path(directory), tensors, sum(x.nbytes for x in arrays.values()), FILE)


def load(directory: Path | str) -> TunedLens:
    """What `TunedLens.save` wrote. Raises UserError where it is not there or not whole."""
    file = TensorFile(Path(directory) / FILE)
    for name, axes in (("matrix", 3), ("bias", 2)):
        if name not in file.tensors or len(file.tensors[name].shape) != axes:
            raise UserError(f"{path_text(file.path)}: expected a tensor {name!r} of {axes} axes")
    return TunedLens(*(jnp.asarray(file.tensors[name].view()) for name in ("matrix", "bias")))


def train(
    model: Model, text: Text | jax.Array | Read, *, steps: int = 250, rate: float = 1e-3, seed: int = 0,
    batch: int = 8, source: Text | jax.Array | None = None,
) -> TunedLens:  # fmt: skip
    """Maps that begin as the identity and go by Adam to the least mean of D(the model's answer || this row's), in nats
    a token, over the texts or the ids (N, T). A tenth of the texts is held back: a row whose map reads them worse than
    no map stays the identity. rate: of the first step; it falls to 0. Raises UserError for a model of labels, weights
    of int8, fewer than two texts, and as `capture.read`."""
    check_slopes(model)
    cfg, rows = model.cfg, read(model, text, source)
    if cfg.outputs:
        raise UserError(f"{path_text(model.path)} is a model of labels; expected one that predicts tokens")
    N = len(rows.tokens)
    if N < 2:
        raise UserError("a tuned lens is trained on some texts and tried on others; expected two or more")
    rows = jax.tree.map(np.asarray, rows)
    rng = np.random.default_rng(seed)
    order_N = rng.permutation(N)
    held, used = order_N[: -(-N // 10)], order_N[-(-N // 10) :]
    identity = TunedLens(
        jnp.broadcast_to(jnp.eye(cfg.width), (cfg.layers, cfg.width, cfg.width)), jnp.zeros((cfg.layers, cfg.width))
    )
    tuned, state = identity, ADAM.init(identity)
    for step in range(steps):
        some = rows_of(rows, rng.choice(used, min(batch, len(used)), replace=False))
        tuned, state = _step(cfg, model.params, tuned, state, some, rate * (1 - step / steps))
    return _better(tuned, identity, *(distances(model, rows_of(rows, held), lens) for lens in (tuned, identity)))


def rows_of(rows: Read, which: np.ndarray) -> Read:
    """Some of the texts."""
    return jax.tree.map(lambda x: x[which], rows)


def distances(model: Model, rows: Read, tuned: TunedLens) -> np.ndarray:
    """(L,): the mean over the tokens of D(the model's answer || what each row says), in nats; a text at a time."""
    sums = [_sums(model.cfg, model.params, rows_of(rows, np.array([i])), tuned) for i in range(len(rows.tokens))]
    total_L, tokens = (np.sum(jax.device_get(part), axis=0) for part in zip(*sums, strict=True))
    return total_L / tokens


def _better(tuned: TunedLens, identity: TunedLens, of_tuned_L: np.ndarray, of_identity_L: np.ndarray) -> TunedLens:
    worse_L = jnp.asarray(of_tuned_L > of_identity_L)
    pick = lambda ours, none: jnp.where(worse_L.reshape(-1, *[1] * (ours.ndim - 1)), none, ours)
    return jax.tree.map(pick, tuned, identity)


@partial(jax.jit, static_argnames="cfg")
def _step(cfg: ModelConfig, params, tuned: TunedLens, state, rows: Read, rate):
    """The maps and Adam's state after one step. The gradient is taken of one row after the other."""
    x_RBTD, last_BTV, weight_BT = _read(cfg, params, rows)

    def of_row(row):
        x_BTD, matrix_DD, bias_D = row
        loss = lambda weights: _distance(cfg, params, x_BTD, *weights, last_BTV, weight_BT) / weight_BT.sum()
        return jax.grad(loss)((matrix_DD, bias_D))

    slopes = TunedLens(*jax.lax.map(of_row, (x_RBTD[:-1], tuned.matrix, tuned.bias)))
    directions, state = ADAM.update(slopes, state)
    return jax.tree.map(lambda w, d: w - rate * d, tuned, directions), state


@partial(jax.jit, static_argnames="cfg")
def _sums(cfg: ModelConfig, params, rows: Read, tuned: TunedLens) -> tuple[jax.Array, jax.Array]:
    """((L,) sums over the tokens of the distances, the number of tokens)."""
    x_RBTD, last_BTV, weight_BT = _read(cfg, params, rows)
    of_row = lambda row: _distance(cfg, params, *row, last_BTV, weight_BT)
    return jax.lax.map(of_row, (x_RBTD[:-1], tuned.matrix, tuned.bias)), weight_BT.sum()


def _read(cfg: ModelConfig, params, rows: Read) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(the residual stream (R, B, T, D), the model's log-probabilities (B, T, V), which tokens count (B, T))."""
    names = stream(cfg)
    found = forward(cfg, params, rows, names, {})
    x_RBTD = jnp.stack([found[name] for name in names])
    weight_BT = jnp.ones(rows.tokens.shape)
    if rows.lengths is not None:
        weight_BT = (jnp.arange(rows.tokens.shape[1]) < rows.lengths[:, None]).astype(jnp.float32)
    return x_RBTD, jax.nn.log_softmax(read_out(cfg, params, x_RBTD[-1])), weight_BT


def _distance(cfg: ModelConfig, params, x_BTD, matrix_DD, bias_D, last_BTV, weight_BT) -> jax.Array:
    log_p_BTV = jax.nn.log_softmax(read_out(cfg, params, (x_BTD @ matrix_DD + bias_D).astype(x_BTD.dtype)))
    return jnp.einsum("BTV,BTV,BT->", jnp.exp(last_BTV), last_BTV - log_p_BTV, weight_BT)
