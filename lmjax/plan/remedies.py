"""What helps a step that does not fit: changes of the experiment, each compiled, the best first."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

import jax

from lmjax.errors import UserError
from lmjax.experiment import Experiment
from lmjax.models.config import Remat
from lmjax.plan.planning import Plan, plan

# from most memory to least
REMAT = get_args(Remat)


@dataclass(frozen=True)
class Remedy:
    """overrides: as they are written after --config. plan: what comes of it."""

    overrides: tuple[str, ...]
    plan: Plan

    @property
    def rank(self) -> tuple:
        """Those that fit come first, the fastest of these before the others; of what does not fit, the smallest."""
        if self.plan.fits:
            return (0, self.plan.roofline.step, self.plan.needed)
        return (1, self.plan.needed or float("inf"), 0)


def remedies(tight: Plan, tell, rounds: int = 3) -> list[Remedy]:
    """Each single change that could help, ranked; where none is enough, the best of them is kept and the next added, at
    most `rounds` deep. tell(remedy) is called for each one compiled."""
    found, overrides, best = [], (), tight
    for _ in range(rounds):
        these = []
        for change, experiment in changes(best):
            try:
                remedy = Remedy((*overrides, *change), plan(experiment, best.topology))
            except UserError:
                continue
            tell(remedy)
            these.append(remedy)
        found += these
        if not these or any(remedy.plan.fits for remedy in these):
            break
        first = min(these, key=lambda remedy: remedy.rank)
        overrides, best = first.overrides, first.plan
    return sorted(found, key=lambda remedy: remedy.rank)


def changes(tight: Plan) -> Iterator[tuple[tuple[str, ...], Experiment]]:
    """The next step in each direction that saves memory, as overrides and as an experiment."""
    experiment, sizes = tight.experiment, dict(tight.mesh.shape)
    ways = sizes["data"] * sizes["fsdp"] * sizes["expert"]
    rows = experiment.microbatch_size // ways
    for factor in (n for n in (2, 4, 8, 16) if rows % n == 0):
        count = experiment.microbatches * factor
        yield (f"microbatches={count}",), replace(experiment, microbatches=count)
    model = experiment.model
    if model.remat in REMAT[:-1]:
        for remat in REMAT[REMAT.index(model.remat) + 1 :]:
            yield (f"model.remat={remat}",), replace(experiment, model=replace(model, remat=remat))
    if experiment.optimizer_memory == "device":
        yield ("optimizer_memory=host",), replace(experiment, optimizer_memory="host")
    with jax.set_mesh(tight.mesh):
        chunk = experiment.loss_chunk()
    if hasattr(experiment.task, "loss_chunk") and chunk % 4 == 0 and chunk > 64:
        yield (
            (f"task.loss_chunk={chunk // 4}",),
            replace(experiment, task=replace(experiment.task, loss_chunk=chunk // 4)),
        )
    for taken, given in (("data", "fsdp"), ("data", "tensor"), ("fsdp", "tensor")):
        if sizes[taken] % 2 == 0:
            split = sizes | {taken: sizes[taken] // 2, given: sizes[given] * 2}
            told = tuple(f"mesh.{axis}={split[axis]}" for axis in (taken, given))
            yield told, replace(experiment, mesh=replace(experiment.mesh, **split))
