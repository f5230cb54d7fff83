"""What a compiled program's text says of its arrays, and of the loops that they stand in."""

import math
import re
from dataclasses import dataclass

from lmjax.plan import collectives

ARRAY = re.compile(r"\b([a-z]+\d+)\[([\d,]+)\]")


@dataclass(frozen=True)
class Gather:
    """An all-gather. sides: of the array that it makes. loops: turns of the loops around it, the outermost first."""

    sides: tuple[int, ...]
    loops: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return math.prod(self.sides)


def operations(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Every line of the program that runs, with the turns of the loops around it."""
    bodies, entry = collectives._computations(text)
    found = []

    def visit(name: str, loops: tuple[int, ...]) -> None:
        for line in bodies.get(name, []):
            found.append((line, loops))
            if loop := collectives._WHILE.search(line):
                turns = collectives._turns(line, bodies[loop[1]])
                visit(loop[2], (*loops, turns))
            elif branches := re.search(r"branch_computations=\{([^}]*)\}", line):
                for branch in branches[1].split(","):
                    visit(branch.strip().lstrip("%"), loops)
            elif called := re.search(r"calls=%?([\w.\-]+)", line):
                visit(called[1], loops)

    visit(entry, ())
    return found


def gathers(text: str) -> list[Gather]:
    """A gathering that runs beside other work stands in several fusions, and here as often."""
    found = []
    for line, loops in operations(text):
        if match := re.search(r"= (.*?) all-gather(?:-start)?\(", line):
            arrays = [tuple(int(side) for side in sides.split(",")) for _, sides in ARRAY.findall(match[1])]
            found.append(Gather(max(arrays, key=math.prod), loops))
    return found


def kernels(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """The name of every Pallas kernel, and the loops around it."""
    found = []
    for line, loops in operations(text):
        if 'custom_call_target="tpu_custom_call"' in line:
            found.append((re.match(r"\s*(?:ROOT )?%?([\w\-]+)", line)[1], loops))
    return found


def arrays(text: str) -> set[tuple[int, ...]]:
    """The sides of every array of numbers that the text mentions."""
    return {tuple(int(side) for side in sides.split(",")) for kind, sides in ARRAY.findall(text) if kind != "pred"}
