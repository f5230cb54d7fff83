"""What a step needs beside its state, on one device, by counts: to judge a compiler's figure by, or in its place."""

import math
from dataclasses import dataclass

import jax

from lmjax.experiment import Experiment
from lmjax.models import splash
from lmjax.models.attention import Splash
from lmjax.models.transformer import abstract_params
from lmjax.plan.counts import kept_activations, layer_activations, predicted_share
from lmjax.sharding import share
from lmjax.tasks.loss import LOGIT_BYTES
from lmjax.train import state as train_state
from lmjax.train.step import kernel
from lmjax.trained import IN_LOOPS, parts
from lmjax.trees import named_leaves


@dataclass(frozen=True)
class Temporaries:
    """Bytes on one device. kept: activations that the remat policy keeps of all layers. gradients: of all parameters
    that are trained, in float32, and twice where microbatches are added up; of adapted weights outside of the blocks
    W + A B and its gradient. weights: of all layers, cast before the loop over them, which halves what the wires carry;
    of adapted ones the sums, where nothing is recomputed. layer: one layer at work. loss: the vocabulary at work."""

    kept: float
    gradients: float
    weights: float
    layer: float
    loss: float

    @property
    def total(self) -> float:
        """The layers' backward pass and the loss take turns."""
        return self.kept + self.weights + max(self.gradients + self.layer, self.loss)


def temporaries(experiment: Experiment, mesh, trained: int) -> Temporaries:
    """trained: bytes of the trained parameters on one device."""
    cfg, sizes, number = experiment.model_of_rows, dict(mesh.shape), 2 if experiment.model.dtype == "bfloat16" else 4
    blocks = sum(_bytes(experiment.model, mesh, start) for start in IN_LOOPS)
    adapted, in_blocks = (_bytes(experiment.model, mesh, start, parts(experiment).adapted) for start in ("", IN_LOOPS))
    rows, length, width = share(("batch", "length", None), (experiment.microbatch_size, cfg.context, cfg.width), sizes)
    (vocab,) = share(("vocab",), (cfg.vocab,), sizes)
    hidden = number * rows * length * width
    logits = min(4.0 * rows * length * predicted_share(experiment) * vocab, LOGIT_BYTES)
    # logits, their gradient and its cast; vectors, in and out
    loss = (2 + number / 4) * logits + 2 * hidden
    if logits:
        # the matrix and the float32 sum of its gradient are whole
        loss += (number + 4) * vocab * width
    return Temporaries(
        kept=kept_activations(experiment) / math.prod(sizes.values()),
        gradients=trained * (1 if experiment.microbatches == 1 else 2) + 2 * (adapted - in_blocks),
        weights=(blocks / 2 if number == 2 else 0) + (number / 4 * in_blocks if cfg.remat == "nothing" else 0),
        layer=_layer(experiment, mesh, number),
        loss=loss,
    )


def _layer(experiment: Experiment, mesh, number: int) -> float:
    """Of an encoder-decoder the larger of one layer of each stack, which take turns. number: bytes of one."""
    cfg, sizes = experiment.model_of_rows, dict(mesh.shape)
    ways, whole = math.prod(sizes.values()), sizes["fsdp"] * sizes["sequence"]
    # a layer keeps all of itself until its gradient is done
    kept = layer_activations(experiment, "nothing")
    found = []
    for start, layers, length, own in zip(
        IN_LOOPS, (cfg.layers, cfg.encoder_layers), (cfg.context, experiment.source_length), kept, strict=True
    ):
        if not layers:
            continue
        # its weights are gathered, and their gradients whole
        gathered = number / 4 * _bytes(experiment.model, mesh, start) * whole / layers
        adapted = _bytes(experiment.model, mesh, start, parts(experiment).adapted) / layers
        # what its products read lies split over "tensor" between blocks, and is gathered too, and its gradient
        between = 4 * number * experiment.microbatch_size * length * cfg.width / ways * (sizes["tensor"] - 1)
        queries = _partial_queries(experiment, mesh, number, length)
        found.append(own / ways + 2 * gathered + queries + between + 2 * adapted)
    return max(found)


def _bytes(cfg, mesh, start: str | tuple[str, ...], among=None) -> int:
    """Of the float32 parameters whose path begins so, on one device. among: paths; None: all."""
    shapes, where = abstract_params(cfg), train_state.param_shardings(cfg, mesh)
    return sum(
        4 * math.prod(place.shard_shape(leaf.shape))
        for (path, leaf), (_, place) in zip(named_leaves(shapes), named_leaves(where), strict=True)
        if path.startswith(start) and (among is None or path in among)
    )


def _partial_queries(experiment: Experiment, mesh, number: int, length: int) -> float:
    """Splash's backward kernel gives a gradient of the queries for each block of keys, which are then added up."""
    cfg = experiment.model_of_rows
    if not isinstance(mesh, jax.sharding.Mesh) or not isinstance(kernel(experiment, mesh)[0], Splash):
        return 0
    blocks = length // splash.key_block(length, dict(mesh.shape)["sequence"])
    queries = experiment.microbatch_size * length * cfg.heads * cfg.head_width / math.prod(mesh.shape.values())
    return number * queries * blocks
