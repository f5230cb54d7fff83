"""What training takes over from the model that `init_from` names: all of its body, and of the parts that stand on
hidden vectors those that both have. The others are drawn from the seed, as in a model that begins with nothing."""

from dataclasses import dataclass, replace

import jax

from lmjax.errors import UserError, path_text
from lmjax.experiment import Experiment
from lmjax.interop.read import open_checkpoint
from lmjax.loaded import base_of_peft, is_directory, is_peft, resolve
from lmjax.models.config import ModelConfig
from lmjax.models.transformer import init_params, param_names
from lmjax.places import Place
from lmjax.run_directory import RunDirectory
from lmjax.sharding import placement
from lmjax.trained import parts

# of the model's parameters, those parts; and what they are called
PARTS = {
    "outputs": "the layer of its task", "pooler": "the pooler", "masked_head": "the head of masked tokens",
    "unembedding": "the matrix of the output", "autoencoder": "the sparse autoencoder",
}  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """A model to begin with. meaning: what its outputs stand for; None where it has none. start: the id with which the
    decoder beside its encoder begins; None: nobody says, or there is none."""

    place: Place
    cfg: ModelConfig
    meaning: tuple | None
    start: int | None


def origin(path: Place | str) -> Origin:
    """Of a run, a Hugging Face directory, or PEFT's with its base. Nothing but configurations is read. Raises UserError
    as `load_model`."""
    place = resolve(path)
    if is_peft(place):
        return replace(origin(base_of_peft(place)), place=place)
    if is_directory(place):
        found = open_checkpoint(place)
        labels = None if found.labels is None else ("Classification", found.labels)
        return Origin(place, found.cfg, labels, found.start)
    experiment = RunDirectory(place).experiment()
    return Origin(place, experiment.model, meaning(experiment), getattr(experiment.task, "start", None))


def meaning(experiment: Experiment) -> tuple | None:
    """What the outputs of the experiment's model stand for: its task, and the names of labels where it has any."""
    if not experiment.task.outputs:
        return None
    return type(experiment.task).__name__, getattr(experiment.task, "labels", None)


def parts_of(cfg: ModelConfig) -> set[str]:
    """The parts that a model has."""
    untied = [] if cfg.tied else ["unembedding"]
    return {*untied, *(name for name in PARTS if name != "unembedding" and getattr(cfg, name))}


def new_and_dropped(experiment: Experiment, other: Origin) -> tuple[set[str], set[str]]:
    """(parts that are drawn from the seed, parts of the other model that are not taken over)."""
    ours, theirs = parts_of(experiment.model), parts_of(other.cfg)
    unlike = set() if meaning(experiment) == other.meaning else {"outputs"}
    if experiment.model.autoencoder != other.cfg.autoencoder:
        unlike.add("autoencoder")
    return ours - (theirs - unlike), theirs - (ours - unlike)


def alike(experiment: Experiment, other: Origin) -> ModelConfig:
    """The other model's configuration with the parts of ours, as far as they may differ: an output's matrix of its own
    is a matter of tasks that predict no token."""
    ours, changes = experiment.model, {"outputs": experiment.model.outputs, "pooler": experiment.model.pooler}
    if not (ours.masked_head and other.cfg.masked_head):
        changes["masked_head"] = ours.masked_head
    if ours.outputs:
        changes["tied"] = ours.tied
    return replace(other.cfg, **changes)


def completed(experiment: Experiment, found: dict, mesh: jax.sharding.Mesh | None) -> dict:
    """The parameters that training begins with: those of the other model without what is dropped, and what is new."""
    new, dropped = new_and_dropped(experiment, origin(experiment.init_from))
    taken = {name: value for name, value in found.items() if name not in dropped}
    if not new:
        return taken
    cfg = experiment.model

    def fresh(key):
        params = init_params(cfg, key)
        return {name: params[name] for name in new}

    key = jax.random.key(experiment.seed)
    names = {name: param_names(cfg)[name] for name in new}
    where = jax.tree.map(lambda x, axes: placement(mesh, axes, x.shape), jax.eval_shape(fresh, key), names)
    return taken | jax.jit(fresh, out_shardings=where)(key)


def told(experiment: Experiment) -> str:
    """In one line, what is new and what was dropped."""
    other = origin(experiment.init_from)
    new, dropped = new_and_dropped(experiment, other)
    said = [f"begins with {path_text(other.place)}"]
    for how, which in (("new", new), ("not taken over", dropped)):
        said += [f"{how}: {', '.join(PARTS[name] for name in PARTS if name in which)}"] if which else []
    return "; ".join(said)


def check_trained(experiment: Experiment, other: Origin) -> None:
    """Raises UserError where a part that is new would stay as it was drawn, and no checkpoint would have it."""
    new, _ = new_and_dropped(experiment, other)
    paths = parts(experiment).trained
    left = [name for name in PARTS if name in new and not any(path.split("/")[0] == name for path in paths)]
    if experiment.adapter is not None and left:
        said = ", ".join(name if name == "unembedding" else f"{name}/*" for name in left)
        raise UserError(f"{PARTS[left[0]]} is new, and no adapter has it: expected adapter.train to name {said}")
