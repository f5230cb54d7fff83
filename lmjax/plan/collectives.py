"""Which bytes go between devices in one step, read from the compiled program's text."""

import math
import re
from collections import defaultdict
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")

BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "bf16": 2, "f16": 2, "f32": 4, "f64": 8,
}  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_CALL = re.compile(r"(?:calls|to_apply|called_computation)=%?([\w.\-]+)")
_WHILE = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"(?:branch_computations=\{([^}]*)\}|true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+))"
)
_OPERATION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """One operation, once. size: bytes of the whole array that it makes or takes, on one device. group: devices that
    take part together. reach: from the first to the last of these, as devices are numbered; 0: not known, as if they
    were neighbours."""

    kind: str
    size: float
    group: int
    reach: int = 0

    @property
    def wire(self) -> float:
        """Bytes that each device sends, by rings."""
        share = (self.group - 1) / self.group
        if self.kind == "collective-permute":
            return self.size
        return self.size * share * (2 if self.kind == "all-reduce" else 1)


def collectives(text: str) -> dict[Collective, int]:
    """How often each runs in one run of the program: what is in a loop counts as often as the loop turns."""
    bodies, entry = _computations(text)
    partitions = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
    found: dict[Collective, int] = defaultdict(int)
    _visit(_Program(bodies, int(partitions[1]) if partitions else 1), entry, 1, set(), found)
    return dict(found)


def by_kind(found: dict[Collective, int]) -> dict[str, tuple[int, float]]:
    """For each kind, how many run, and the bytes that each device sends in them."""
    sums: dict[str, tuple[int, float]] = {}
    for one, times in found.items():
        count, sent = sums.get(one.kind, (0, 0.0))
        sums[one.kind] = (count + times, sent + times * one.wire)
    return sums


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies, entry, current = {}, "", None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = bodies[match[2]] = []
            entry = match[2] if match[1] else entry
        elif line.rstrip() == "}":
            current = None
        elif current is not None:
            current.append(line)
    return bodies, entry


@dataclass(frozen=True)
class _Program:
    """bodies: the lines of each computation. devices: on which it runs."""

    bodies: dict[str, list[str]]
    devices: int


def _visit(program: _Program, name: str, times: int, channels: set[str], found) -> None:
    """channels: of the collectives already counted in this turn of the loop. One that runs beside other work stands in
    several fusions, its beginning, middle and end."""
    lines = program.bodies.get(name, [])
    for line in lines:
        operation = _OPERATION.match(line)
        if not operation:
            continue
        kind = operation[4].removesuffix("-start")
        if kind in KINDS:
            channel = re.search(r"channel_id=\d+", line)
            one = _collective(kind, operation, line, lines, program.devices)
            if one.group > 1 and not (channel and channel[0] in channels):
                found[one] += times
            channels |= {channel[0]} if channel else set()
        elif loop := _WHILE.search(line):
            turns = _turns(line, program.bodies.get(loop[1], []))
            _visit(program, loop[2], times * turns, set(), found)
        elif operation[4] in ("fusion", "call", "async-start", "custom-call") and (called := _CALL.search(line)):
            _visit(program, called[1], times, channels, found)
        elif branches := _BRANCHES.search(line):
            names = branches[1].split(",") if branches[1] else [branches[2], branches[3]]
            # one of them runs; layers of different windows take turns, and their collectives are alike
            _visit(program, names[0].strip().lstrip("%"), times, channels, found)


def _turns(line: str, condition: list[str]) -> int:
    """Of a loop: as the compiler noted it, or the number that its counter is compared with."""
    if known := re.search(r'known_trip_count"?:\s*\{"?n"?:"?(\d+)', line):
        return int(known[1])
    constants = [int(n) for text in condition for n in re.findall(r"s32\[\]\S* constant\((\d+)\)", text)]
    return max(constants, default=1)


def _collective(kind: str, operation, line: str, lines: list[str], devices: int) -> Collective:
    arrays = list(_ARRAY.finditer(operation[3]))
    if operation[4].endswith("-start") and kind != "all-reduce":
        # ((operands), results, what the runtime notes): the results alone
        arrays = [array for array in arrays if array[2]]
        arrays = arrays[len(arrays) // 2 :]
    size = sum(_bytes(array) for array in arrays)
    group = _group(line, kind, devices)
    if kind == "reduce-scatter":
        size *= group
    cut_afterwards = len(lines) < 12 and any("ROOT" in other and " dynamic-slice(" in other for other in lines)
    if kind == "all-reduce" and cut_afterwards:
        # how TPU programs say it: a fused computation that sums and cuts
        kind = "reduce-scatter"
    return Collective(kind, size, group)


def _bytes(match) -> float:
    sides = [int(side) for side in match[2].split(",") if side]
    return BYTES.get(match[1], 1 if match[1].startswith("f8") else 4) * math.prod(sides)


def _group(line: str, kind: str, devices: int) -> int:
    """How many devices take part together; all where nothing says so."""
    if kind == "collective-permute":
        return 2
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'([\w.]+)'=(\d+)", named[1]))
        return math.prod(int(sizes.get(axis, 1)) for axis in re.findall(r"'([\w.]+)'", named[2]))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line):
        return int(iota[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return listed[1].count(",") + 1
    return devices
