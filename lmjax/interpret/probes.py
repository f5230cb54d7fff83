"""Linear probes (arXiv:1610.01644): what a logistic regression reads off the vectors at a site, beside one of the same
size that is trained on shuffled labels (arXiv:1909.03368)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax.batching import Text
from lmjax.errors import UserError
from lmjax.interpret.capture import Model, Read
from lmjax.interpret.steering import Position, at_position
from lmjax.tasks.text_metrics import Interval, wilson

STEPS, TOLERANCE = 500, 1e-5


@dataclass(frozen=True)
class Probe:
    """weights_CD, bias_C: of the logits of each label. labels: in their order. accuracy: on the share of the texts that
    was held out, with Wilson's interval of 95 %; majority: of always the most frequent label. control: the accuracy on
    the held-out texts of a probe whose training labels were shuffled."""

    weights_CD: np.ndarray
    bias_C: np.ndarray
    labels: tuple
    accuracy: float
    interval: Interval
    majority: float
    control: float
    held_out: int

    def __call__(self, x_BD: jax.Array) -> list:
        """The label of each vector."""
        return [self.labels[i] for i in _chosen(self.weights_CD, self.bias_C, np.asarray(x_BD))]


def probe(
    model: Model, texts: Text | jax.Array | Read, labels: Sequence, site: str, position: Position = -1, *,
    share: float = 0.25, penalty: float = 1.0, seed: int = 0,
) -> Probe:  # fmt: skip
    """Trained to tell the labels of texts from what stands at the site. position: `at_position`. share: of the texts
    that are held out, drawn by the seed. penalty: of the weights, see `logistic_regression`; each number of a vector
    has mean 0 and variance 1 over the training texts first. Raises UserError where texts and labels are not equally
    many, fewer than two labels are to be told apart, or nothing is left to hold out, and as `at_position`."""
    x_BD = np.asarray(at_position(model, texts, site, position), np.float32)
    return fitted(x_BD.reshape(len(x_BD), -1), labels, share=share, penalty=penalty, seed=seed)


def fitted(x_BD: np.ndarray, labels: Sequence, *, share: float = 0.25, penalty: float = 1.0, seed: int = 0) -> Probe:
    """The same, of these vectors."""
    if len(kinds := {type(label) for label in labels}) > 1:
        raise UserError(f"labels: {' and '.join(sorted(kind.__name__ for kind in kinds))}; expected all of one type")
    names = tuple(sorted(set(labels)))
    if len(labels) != len(x_BD):
        raise UserError(f"{len(x_BD)} texts and {len(labels)} labels; expected equally many")
    if len(names) < 2:
        raise UserError(f"labels: all are {names[0]!r}; expected at least two different ones")
    y_B = np.array([names.index(label) for label in labels])
    draws = np.random.default_rng(seed)
    order = draws.permutation(len(y_B))
    held = round(share * len(y_B))
    if not 0 < held < len(y_B) - 1:
        raise UserError(f"share is {share}: {held} of {len(y_B)} texts would be held out; expected some on either side")
    test, train = order[:held], order[held:]
    mean_D, std_D = x_BD[train].mean(0), x_BD[train].std(0) + 1e-6
    z_BD = (x_BD - mean_D) / std_D
    weights_CD, bias_C = logistic_regression(z_BD[train], y_B[train], len(names), penalty=penalty)
    shuffled = logistic_regression(z_BD[train], draws.permutation(y_B[train]), len(names), penalty=penalty)
    right = _chosen(weights_CD, bias_C, z_BD[test]) == y_B[test]
    control = np.mean(_chosen(*shuffled, z_BD[test]) == y_B[test])
    majority = np.mean(y_B[test] == np.bincount(y_B[train]).argmax())
    weights_CD = weights_CD / std_D
    return Probe(
        weights_CD, bias_C - weights_CD @ mean_D, names, float(right.mean()), wilson(float(right.sum()), held),
        float(majority), float(control), held,
    )  # fmt: skip


def _chosen(weights_CD: np.ndarray, bias_C: np.ndarray, x_BD: np.ndarray) -> np.ndarray:
    return (x_BD @ weights_CD.T + bias_C).argmax(-1)


def logistic_regression(
    x_BD: np.ndarray, y_B: np.ndarray, classes: int, *, penalty: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """(weights (C, D), bias (C,)) that make small the sum of -log p of the labels y (numbers below `classes`) and
    penalty / 2 times the squared weights; the bias is free. As scikit-learn's LogisticRegression with C = 1 / penalty
    and several classes. All rows at every step, by L-BFGS."""
    weights_CD, bias_C = _minimised(jnp.asarray(x_BD, jnp.float32), jnp.asarray(y_B), jnp.float32(penalty), classes)
    # a constant on all logits changes nothing
    return np.asarray(weights_CD), np.asarray(bias_C - bias_C.mean())


@partial(jax.jit, static_argnames="classes")
def _minimised(x_BD, y_B, penalty, classes: int):
    def objective(params):
        weights_CD, bias_C = params
        nats_B = optax.softmax_cross_entropy_with_integer_labels(x_BD @ weights_CD.T + bias_C, y_B)
        return (nats_B.sum() + penalty / 2 * jnp.square(weights_CD).sum()) / len(y_B)

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry):
        params, state, _, count = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=objective)
        return optax.apply_updates(params, updates), state, optax.tree.norm(grad), count + 1

    def go_on(carry):
        return (carry[2] > TOLERANCE) & (carry[3] < STEPS)

    params = jnp.zeros((classes, x_BD.shape[1])), jnp.zeros(classes)
    return jax.lax.while_loop(go_on, step, (params, optimizer.init(params), jnp.inf, 0))[0]
