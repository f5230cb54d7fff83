"""A plan: what one experiment needs on one topology."""

from dataclasses import dataclass, replace

from lmjax.errors import UserError
from lmjax.experiment import Experiment
from lmjax.plan.collectives import Collective
from lmjax.plan.compiled import Figures, Sizes, TooLarge, compile_train_step, planned_mesh, sizes_of
from lmjax.plan.devices import Topology
from lmjax.plan.memory import temporaries
from lmjax.plan.roofline import Roofline, counted_collectives, roofline
from lmjax.tokenizers import Bytes, SentencePiece
from lmjax.train.step import kernel


@dataclass(frozen=True)
class Plan:
    """figures: the compiler's, or None where there is none for such devices, or it found that the step does not fit.
    needed: bytes on one device, the compiler's or, where there is none, from counts; None where nobody says."""

    experiment: Experiment
    topology: Topology
    mesh: object
    size: Sizes
    figures: Figures | None
    needed: float | None
    compiled: bool
    program: object = None

    @property
    def kernel(self) -> str:
        """Of attention, by name; of devices without a compiler here it is not known."""
        return type(kernel(self.experiment, self.mesh)[0]).__name__ if self.compiled else "unknown"

    @property
    def fits(self) -> bool:
        """Whether one device holds the step."""
        if self.compiled and self.figures is None:
            return False
        return self.needed is not None and self.needed <= self.topology.device.memory

    @property
    def collectives(self) -> dict[Collective, int]:
        """The compiler's, or what must be."""
        if self.figures is None:
            return counted_collectives(self.experiment, self.mesh)
        return self.figures.collectives

    @property
    def roofline(self) -> Roofline:
        found = self.collectives
        return roofline(self.experiment, self.topology, self.mesh, self.size, found)

    @property
    def tokens_per_second(self) -> float:
        """At best."""
        return self.experiment.tokens_per_step / self.roofline.step


def with_known_vocab(experiment: Experiment) -> Experiment:
    """The experiment with the model's vocabulary, which planning takes from the settings, never from files. Raises
    UserError where no setting says it."""
    if experiment.model.vocab is not None:
        return experiment
    match experiment.tokenizer:
        case Bytes() as settings:
            return experiment.with_vocab(settings.build(list).vocab_size)
        case SentencePiece(path=None, vocab_size=size):
            return experiment.with_vocab(size)
    kind = type(experiment.tokenizer).__name__
    raise UserError(
        f"planning reads no files, so {kind} does not say how large the vocabulary is: --model.vocab=N does"
    )


def plan(experiment: Experiment, topology: Topology) -> Plan:
    """Compile the step where there is a compiler for the topology; else count. Raises UserError."""
    experiment = with_known_vocab(experiment)
    mesh, real = planned_mesh(experiment, topology)
    return plan_on(experiment, topology, mesh, real=real)


def plan_on(experiment: Experiment, topology: Topology, mesh, *, real: bool = True) -> Plan:
    """The same on a mesh that is there already. real: whether there is a compiler for it."""
    size = sizes_of(experiment, mesh)
    if not real:
        return Plan(experiment, topology, mesh, size, None, counted_bytes(experiment, mesh, size), False)
    try:
        program, figures = compile_train_step(experiment, mesh)
    except TooLarge as error:
        return Plan(experiment, topology, mesh, size, None, error.needed, True)
    return Plan(experiment, topology, mesh, size, figures, figures.peak, True, program)


def counted_bytes(experiment: Experiment, mesh, size: Sizes) -> float:
    """State, and what a step needs beside it (`memory.temporaries`), on one device."""
    return size.params + size.optimizer + size.batch + temporaries(experiment, mesh, size.trained).total


def largest_batch(experiment: Experiment, topology: Topology, tell) -> Plan | None:
    """The plan of the largest batch that fits, found by doubling and halving the rows of a microbatch on each device;
    None where one row does not. tell(plan) is called for each one tried."""
    experiment = with_known_vocab(experiment)

    def tried(rows: int) -> Plan:
        one = plan(
            replace(experiment, batch_size=rows * experiment.microbatches * _ways(experiment, topology)), topology
        )
        tell(one)
        return one

    best, low, high = None, 0, 1
    while (one := tried(high)).fits:
        best, low, high = one, high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if (one := tried(middle)).fits:
            best, low = one, middle
        else:
            high = middle
    return best


def _ways(experiment: Experiment, topology: Topology) -> int:
    """Into how many parts the mesh splits the rows."""
    sizes = experiment.mesh.resolve(topology.count)
    return sizes["data"] * sizes["fsdp"] * sizes["expert"]
