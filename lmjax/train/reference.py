"""What the model before the first step gives to the answers of a task of preferences."""

from dataclasses import replace

from lmjax import trained
from lmjax.errors import UserError, path_text
from lmjax.evaluate.preferences import REFERENCE, Judge, stored_reference
from lmjax.run_directory import RunDirectory
from lmjax.tasks.preferences import Preferences, with_reference
from lmjax.train.prepare import Prepared, batches_of
from lmjax.train.state import TrainState


def compared(prepared: Prepared, run: RunDirectory, state: TrainState, frozen: dict) -> Prepared:
    """Prepared with log p of all answers under the model before the first step, on the mesh in use; of other tasks as
    it is. The run remembers these numbers, and reads them when it goes on. Raises UserError where it then has other
    examples."""
    experiment, reading = prepared.experiment, prepared.reading
    if not isinstance(experiment.task, Preferences):
        return prepared
    rows = [*(part for part, _ in reading.parts), reading.held_out]
    if int(state.step) == 0:
        judge, params = Judge(experiment), trained.whole(experiment, state.params, frozen)
        found = [judge(params, one) for one in rows]
        known = {"fingerprints": reading.fingerprints, "log_p": [one.tolist() for one in found]}
        run.write_json(REFERENCE, known)
    else:
        found = stored_reference(run, reading.fingerprints)
    if found is None:
        raise UserError(
            f"{path_text(run.path / REFERENCE)} is of other examples, and the model before the first step is not here "
            "any more; --run DIR starts another run"
        )
    *parts, held_out = (with_reference(one, log_p_E2) for one, log_p_E2 in zip(rows, found, strict=True))
    weights = [weight for _, weight in reading.parts]
    reading = replace(reading, parts=list(zip(parts, weights, strict=True)), held_out=held_out)
    batches = batches_of(experiment, prepared.tokenizer, reading)
    return replace(prepared, reading=reading, batches=batches)
