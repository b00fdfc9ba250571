"""What a compiled TPU program costs: cycles, the dearest operations, copies, collectives.

The text is the scheduled program. Most operations carry the compiler's `estimated_cycles`; a loop's
body is counted as often as it runs, of a conditional the dearest branch. Memory copies that run
beside the computation (copy-start) have no cycles. A permutation between chips counts as the cycles
for which it holds up what follows: it begins when all that was sent the same way before it has
come, and what is scheduled between its start and its end runs beside it.
"""

import dataclasses
import math
import re
from collections.abc import Callable

from benchmarks.suites.hlo import (
    Computation,
    Frames,
    Operation,
    group_size,
    parse,
    shape_bytes,
)

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
                "collective-broadcast", "ragged-all-to-all")  # fmt: skip
# A fusion of these alone moves and rounds numbers and computes none; XLA writes a concatenation as
# the maximum of two arrays that are padded with -inf.
_MOVES = {"copy", "transpose", "convert", "reshape", "bitcast", "bitcast-convert", "slice", "pad",
          "concatenate", "maximum", "dynamic-slice", "dynamic-update-slice", "broadcast", "tuple",
          "get-tuple-element", "parameter", "constant", "fusion", "iota"}  # fmt: skip
_MOVED = {"copy", "transpose", "convert", "slice", "pad", "concatenate", "dynamic-slice",
          "dynamic-update-slice"}  # fmt: skip
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "minimum": min,
    "maximum": max,
}
_TURNED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE"}
_NOTHING = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all")
# Of a custom-call: what was fetched piece by piece is one array, and what is not yet written.
_NO_WORK = re.compile(r'custom_call_target="(ConcatBitcast|AllocateBuffer)"')


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one operation costs, all times that it runs together.

    Attributes:
      name: Of the operation; with what it was written as and where, if the text tells.
      opcode: Of it.
      times: How often it runs.
      cycles: Of all these times.
      n_bytes: Of its results; of a kernel also of what it reads, of an update what it writes.
      moves: Whether it only moves or rounds numbers.
      estimated: Whether the compiler gave cycles.
      n_devices: That exchange something with one another; 0 where the text does not tell.
      waits: Cycles of a permutation between chips that nothing runs beside; of none, 0.
    """

    name: str
    opcode: str
    times: float
    cycles: float
    n_bytes: float
    moves: bool
    estimated: bool
    n_devices: int = 0
    waits: float = 0.0

    @property
    def collective(self) -> bool:
        """Whether devices exchange something."""
        return self.opcode in _COLLECTIVES

    @property
    def kernel(self) -> bool:
        """Whether this is a kernel that the compiler does not look into (Pallas)."""
        return self.opcode == "custom-call" and not self.estimated

    @property
    def beside(self) -> bool:
        """Whether this runs beside the computation: a prefetch into the chip's inner memory."""
        return self.opcode.endswith("-start")


@dataclasses.dataclass(frozen=True)
class Analysis:
    """A whole program.

    Attributes:
      costs: Of all operations but those of the host's bookkeeping.
      data_loops: Loops that run as often as their data ask; `data_trips` says what was assumed.
    """

    costs: list[Cost]
    data_loops: int

    @property
    def cycles(self) -> float:
        """Of all operations, one after the other."""
        return sum(cost.cycles for cost in self.costs)


def analyse(text: str, data_trips: float = 1.0, link_bytes: float = math.inf) -> Analysis:
    """Counts what a compiled program does.

    Args:
      text: Of `Compiled.as_text()`.
      data_trips: How often a loop runs whose number of steps is computed from data.
      link_bytes: That a chip sends to one neighbour in a cycle.

    Raises:
      ValueError: The text has no entry computation.
    """
    computations, entry = parse(text)
    walk = _Walk(computations, Frames(text), data_trips, link_bytes)
    walk.visit(entry, 1.0, {})
    return Analysis(walk.costs, walk.data_loops)


class _Walk:
    """One way through the program, every computation as often as it is called.

    Whole numbers that are known before the program runs are followed into loops: `known` maps the
    places of a computation's tuple argument to them.
    """

    def __init__(
        self,
        computations: dict[str, Computation],
        frames: Frames,
        data_trips: float,
        link_bytes: float,
    ):
        self.computations, self.frames, self.data_trips = computations, frames, data_trips
        self.link_bytes = link_bytes
        self.costs: list[Cost] = []
        self.data_loops = 0

    def visit(self, name: str, times: float, known: dict[int, int]) -> None:
        computation = self.computations[name]
        waits = _permutation_waits(computation, self.link_bytes)
        for operation in computation.operations.values():
            match operation.opcode:
                case "while":
                    self._loop(computation, operation, times, known)
                case "conditional":
                    self._branches(operation, times)
                case "call":
                    self.visit(operation.attribute(_named("to_apply")) or "", times, {})
                case _:
                    self._count(computation, operation, times, waits.get(operation.name))

    def _loop(
        self, computation: Computation, loop: Operation, times: float, known: dict[int, int]
    ) -> None:
        body, condition = (loop.attribute(_named(part)) or "" for part in ("body", "condition"))
        start = {
            i: value
            for i, operand in enumerate(_elements(computation, loop.operands[0]))
            if (value := _value(computation, operand, known)) is not None
        }
        inside = self.computations[body]
        changed = {
            i: name
            for i, name in enumerate(_elements(inside, inside.root))
            if inside.place(name) != i
        }
        kept = {i: value for i, value in start.items() if i not in changed}
        trips = self._trips(loop, inside, condition, start, changed, kept)
        if trips is None:
            trips, self.data_loops = self.data_trips, self.data_loops + 1
        self.visit(body, times * trips, kept)
        self.visit(condition, times * trips, kept)

    def _trips(
        self,
        loop: Operation,
        body: Computation,
        condition: str,
        start: dict[int, int],
        changed: dict[int, str],
        kept: dict[int, int],
    ) -> float | None:
        """How often a loop runs; None where that is computed from data."""
        told = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
        if told:
            return int(told)
        tested = self.computations[condition]
        root, operands = self._unfused(tested, tested.root)
        direction = root.attribute(r"direction=(\w+)")
        if root.opcode != "compare" or direction is None or len(operands) != 2:
            return None
        if operands[0][0].place(operands[0][1]) not in changed:
            operands, direction = operands[::-1], _TURNED.get(direction, direction)
        counter = operands[0][0].place(operands[0][1])
        bound = _value(*operands[1], kept)
        if counter not in changed or counter not in start or bound is None:
            return None
        step = self._step(body, changed[counter], counter, kept)
        if not step:
            return None
        last = {"LT": bound, "GT": bound, "NE": bound, "LE": bound + 1, "GE": bound - 1}
        return max(0, math.ceil((last[direction] - start[counter]) / step))

    def _step(self, body: Computation, name: str, counter: int, kept: dict[int, int]) -> int | None:
        """What the body adds to the counter."""
        operation, operands = self._unfused(body, body.behind_copies(name))
        if operation.opcode != "add":
            return None
        others = [operand for operand in operands if operand[0].place(operand[1]) != counter]
        return _value(*others[0], kept) if len(others) == 1 else None

    def _unfused(
        self, computation: Computation, name: str
    ) -> tuple[Operation, list[tuple[Computation, str]]]:
        """An operation, or the last one of a fusion, and where each of its operands stands."""
        operation = computation.operations[name]
        operands = [(computation, operand) for operand in operation.operands]
        if operation.opcode == "fusion":
            inside = self.computations[operation.attribute(_named("calls")) or ""]
            operation, outer = inside.operations[inside.root], operands
            operands = [
                outer[int(each.literal)] if each.opcode == "parameter" else (inside, each.name)
                for each in (inside.operations[operand] for operand in operation.operands)
            ]
        return operation, operands

    def _branches(self, operation: Operation, times: float) -> None:
        """Counts the branch with the most cycles."""
        listed = re.findall(
            r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%?[\w.\-]+))",
            operation.attributes,
        )
        names = [name.strip(" %") for pair in listed for name in "".join(pair).split(",")]
        context = self.computations, self.frames, self.data_trips, self.link_bytes
        walks = [_Walk(*context) for _ in names]
        for walk, name in zip(walks, names, strict=True):
            walk.visit(name, times, {})
        dearest = max(walks, key=lambda walk: sum(cost.cycles for cost in walk.costs))
        self.costs += dearest.costs
        self.data_loops += dearest.data_loops

    def _count(
        self, computation: Computation, operation: Operation, times: float, waits: float | None
    ) -> None:
        if operation.opcode in _NOTHING or operation.opcode.endswith("-done"):
            return  # What is done was counted where it started.
        if _NO_WORK.search(operation.attributes):
            return
        cycles = operation.cycles
        inside = self._opcodes(operation)
        collective = next((name for name in _COLLECTIVES if name in inside), None)
        n_bytes = shape_bytes(_sent(operation))
        operands = [computation.operations[name].shape for name in operation.operands]
        if operation.opcode == "custom-call":
            n_bytes += sum(map(shape_bytes, operands))
        elif operation.opcode == "dynamic-update-slice":
            n_bytes = shape_bytes(operands[1])  # The rest stays where it is.
        elif operation.opcode == "all-gather-start":
            n_bytes = shape_bytes(operation.shape) - sum(map(shape_bytes, operands))
        elif operation.opcode == "reduce-scatter":
            n_bytes = sum(map(shape_bytes, operands))
        elif collective == "all-reduce" and operation.opcode == "fusion":
            whole = self._reduced_bytes(operation)
            if whole > n_bytes:  # Each chip keeps a part of the sums.
                collective, n_bytes = "reduce-scatter", whole
        if waits is None:  # In a fusion nothing runs beside it.
            waits = n_bytes / self.link_bytes if collective == "collective-permute" else 0.0
        cost = Cost(
            name=self.frames.label(operation),
            opcode=collective or operation.opcode,
            times=times,
            cycles=(cycles or 0) * times,
            n_bytes=n_bytes * times,
            moves=bool(inside & _MOVED) and inside <= _MOVES,
            estimated=cycles is not None,
            n_devices=self._n_devices(operation) if collective else 0,
            waits=waits * times,
        )
        self.costs.append(cost)

    def _n_devices(self, operation: Operation) -> int:
        """Devices of a group that exchanges something, in a collective or what is fused with it."""
        called = self.computations.get(operation.attribute(_named("calls")) or "")
        inner = () if called is None else called.operations.values()
        return group_size(operation.attributes) or max(map(self._n_devices, inner), default=0)

    def _reduced_bytes(self, operation: Operation) -> int:
        """Of the arrays that all-reduces in a fusion sum."""
        called = self.computations.get(operation.attribute(_named("calls")) or "")
        if called is None:
            return shape_bytes(operation.shape) if operation.opcode == "all-reduce" else 0
        return sum(map(self._reduced_bytes, called.operations.values()))

    def _opcodes(self, operation: Operation) -> set[str]:
        """The opcode of an operation and, of a fusion, of all that it fuses."""
        opcodes = {operation.opcode.removesuffix("-start")}
        called = operation.attribute(_named("calls"))
        if called in self.computations:
            for inner in self.computations[called].operations.values():
                opcodes |= self._opcodes(inner)
        return opcodes


def _permutation_waits(computation: Computation, link_bytes: float) -> dict[str, float]:
    """For each permutation between chips, where it starts: cycles that nothing runs beside.

    Args:
      computation: Its operations run one after the other.
      link_bytes: That a chip sends to one neighbour in a cycle.
    """
    now, waits = 0.0, {}
    comes: dict[str, float] = {}
    free: dict[str | None, float] = {}  # When all has come that went one way.
    for operation in computation.operations.values():
        match operation.opcode:
            case "collective-permute" | "collective-permute-start":
                way = operation.attribute(r"source_target_pairs=(\{\{.*?\}\})")
                come = max(now, free.get(way, 0.0)) + shape_bytes(_sent(operation)) / link_bytes
                free[way] = comes[operation.name] = come
                waits[operation.name] = 0.0
                if operation.opcode == "collective-permute":
                    waits[operation.name], now = come - now, come
            case "collective-permute-done":
                start = operation.operands[0]
                waits[start] = max(0.0, comes.get(start, now) - now)
                now += waits[start]
            case _:
                now += operation.cycles or 0
    return waits


def _sent(operation: Operation) -> str:
    """The shape of what an operation makes, or starts to copy or exchange."""
    shape = operation.shape
    if not operation.opcode.endswith("-start"):
        return shape
    return shape[1:].partition("), ")[0] if shape.startswith("((") else _first(shape)


def _named(attribute: str) -> str:
    return rf"\b{attribute}=%?([\w.\-]+)"


def _first(shape: str) -> str:
    """The first array of a tuple."""
    return re.match(r"\(?[^{ ]*", shape)[0]  # type: ignore[index]


def _elements(computation: Computation, name: str) -> tuple[str, ...]:
    operation = computation.operations[name]
    return operation.operands if operation.opcode == "tuple" else ()


def _value(computation: Computation, name: str, known: dict[int, int]) -> int | None:
    """A whole number that is known before the program runs."""
    operation = computation.operations[computation.behind_copies(name)]
    if operation.opcode == "constant":
        return int(operation.literal) if re.fullmatch(r"-?\d+", operation.literal) else None
    place = computation.place(operation.name)
    if place is not None:
        return known.get(place)
    if operation.opcode not in _ARITHMETIC:
        return None
    first, second = (_value(computation, operand, known) for operand in operation.operands)
    if first is None or second is None:
        return None
    return _ARITHMETIC[operation.opcode](first, second)
