"""The verb `plan`: the plan of an experiment as text, what helps where it does not fit, and the search for a batch."""

import json
from pathlib import Path

from lmjax import experiment as experiments
from lmjax.checkpoint import write_whole
from lmjax.errors import UserError
from lmjax.plan import report, scaling
from lmjax.plan.counts import flops_per_token, params
from lmjax.plan.devices import HERE, topology_of
from lmjax.plan.planning import Plan, largest_batch, plan
from lmjax.plan.remedies import remedies
from lmjax.plan.report import remedy_line


def run(options, changes: list[str]) -> int:
    """Raises UserError. The exit code: 0, or 1 where the step does not fit."""
    if options.compute is not None:
        if not options.compute > 0:
            raise UserError(f"--compute {options.compute}: expected a positive number of FLOPs, as 1e21")
        print("\n".join(scaling.lines(options.compute)))
        return 0
    if options.config is None:
        raise UserError("plan: expected --config FILE, or --compute FLOPS")
    if options.price is not None and not options.price >= 0:
        raise UserError(f"--price {options.price}: expected 0 or more")
    experiment = experiments.load(options.config, changes)
    topology = topology_of(options.topology or experiment.topology or HERE)
    made = plan(experiment, topology)
    for line in report.lines(made, options.price):
        print(line, flush=True)
    if options.json:
        write_whole(Path(options.json), json.dumps(as_dict(made), indent=2) + "\n")
    if made.compiled and (not made.fits or options.remedies):
        show_remedies(made)
    if options.search:
        show_search(experiment, topology)
    return 0 if made.fits else 1


def show_remedies(made: Plan) -> None:
    """Each is told when it is compiled, and all of them again in order."""
    print("what could help, each compiled:", flush=True)
    ranked = remedies(made, lambda remedy: print(remedy_line(remedy), flush=True))
    print("the best first:" if ranked else "nothing: this experiment has no change left that saves memory")
    for remedy in ranked:
        print(remedy_line(remedy))


def show_search(experiment, topology) -> None:
    def tell(one: Plan) -> None:
        print(f"  batch_size {one.experiment.batch_size:,}: {report.verdict(one)}", flush=True)

    print("the largest batch that fits, by compiling:", flush=True)
    best = largest_batch(experiment, topology, tell)
    if best is None:
        print("none: one row on each device does not fit")
        return
    size = best.experiment.batch_size
    print(
        f"--batch_size={size}: {size * best.experiment.model.context:,} tokens a step, "
        f"{best.tokens_per_second:,.0f} tokens/s at best"
    )


def as_dict(made: Plan) -> dict:
    """The figures by name, in bytes, seconds and FLOPs."""
    experiment, best = made.experiment, made.roofline
    figures = {
        "experiment": experiment.name, "kernel": made.kernel, "topology": made.topology.name,
        "mesh": dict(made.mesh.shape), "remat": experiment.model.remat,
        "parameters": params(experiment.model), "flops_per_token": flops_per_token(experiment.model),
        "tokens": experiment.tokens, "fits": made.fits, "needed_bytes": made.needed,
        "device_bytes": made.topology.device.memory, "parameter_bytes": made.size.params,
        "optimizer_bytes": made.size.optimizer, "batch_bytes": made.size.batch,
        "compute_seconds": best.compute, "memory_seconds": best.memory, "wire_seconds": best.wires,
        "step_seconds": best.step, "tokens_per_second": made.tokens_per_second,
    }  # fmt: skip
    if made.figures is not None:
        figures |= {"argument_bytes": made.figures.arguments, "temporary_bytes": made.figures.temporaries}
    return figures
