"""The text of a compiled program (`Compiled.as_text()`), as computations of operations."""

import dataclasses
import math
import pathlib
import re

_BITS = {"pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "token": 0, "opaque": 0}
_KERNEL_METADATA = re.compile(r"kernel_metadata=\{\n.*?\n\}")
_SAME_NUMBER = ("copy", "copy-start", "copy-done", "bitcast", "convert", "reshape")


@dataclasses.dataclass(frozen=True)
class Operation:
    """A line of the program.

    Attributes:
      name: Of its result.
      opcode: What it does.
      shape: Text of its result's shape.
      operands: Names of what it reads.
      literal: What stands between the parentheses.
      attributes: What follows them.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    literal: str
    attributes: str

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern in the attributes; None where it is not there."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else None

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate; None where it gives none."""
        value = self.attribute(r'"estimated_cycles":"(\d+)"')
        return None if value is None else int(value)


@dataclasses.dataclass
class Computation:
    """The operations of one computation.

    Attributes:
      operations: By name, in the order of the schedule.
      root: Name of the one whose result is the computation's.
    """

    operations: dict[str, Operation] = dataclasses.field(default_factory=dict)
    root: str = ""

    def place(self, name: str) -> int | None:
        """The place in the computation's tuple argument that an operation reads, or copies."""
        operation = self.operations[self.behind_copies(name)]
        if operation.opcode != "get-tuple-element":
            return None
        if self.operations[operation.operands[0]].opcode != "parameter":
            return None
        return int(operation.attribute(r"\bindex=(\d+)") or 0)

    def behind_copies(self, name: str) -> str:
        """What an operation is a copy of, or itself."""
        while self.operations[name].opcode in _SAME_NUMBER:
            name = self.operations[name].operands[0]
        return name


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Computations by name, and the entry's name.

    Raises:
      ValueError: There is no entry: this is not the text of a compiled program.
    """
    computations: dict[str, Computation] = {}
    entry, current = None, None
    # What a kernel says of itself stands on lines of its own.
    for line in _KERNEL_METADATA.sub("kernel_metadata={}", text).splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if head:
            current = computations.setdefault(head[2], Computation())
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            operation = _operation(line)
            if operation:
                current.operations[operation.name] = operation
                if line.lstrip().startswith("ROOT "):
                    current.root = operation.name
    if entry is None:
        raise ValueError("expected the text of a compiled program, got one without ENTRY")
    return computations, entry


def group_size(attributes: str) -> int:
    """Devices of each of a collective's replica_groups, in any of three notations; 0 without."""
    listed = re.search(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]<=)", attributes)
    if listed:
        return len(listed[1].split(",")) if listed[1] else int(listed[2])
    axes = re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{((?:'\w+',? ?)+)\}", attributes)
    if axes is None:
        return 0
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
    return math.prod(int(sizes[name]) for name in re.findall(r"\w+", axes[2]))


def shape_bytes(shape: str) -> int:
    """Bytes of an array or of all arrays of a tuple; padding of tiles is not counted."""
    total = 0
    for dtype, sizes in re.findall(r"([a-z]\w*)\[([\d,<=]*)\]", shape):
        numbers = [int(size) for size in re.findall(r"\d+", sizes)]
        bits = _BITS.get(dtype)
        if bits is None:
            bits = int((re.search(r"\d+", dtype) or ["0"])[0])
        total += math.prod(numbers) * bits // 8
    return total


def _operation(line: str) -> Operation | None:
    line = re.sub(r"/\*.*?\*/", "", line).strip().removeprefix("ROOT ")
    name, equals, rest = line.partition(" = ")
    if not equals:
        return None
    end = _balanced(rest) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _balanced("(" + rest) - 1
    inside, attributes = rest[: end - 1], rest[end:]
    operands = re.findall(r"%([\w.\-]+)", inside)
    return Operation(name.lstrip("%"), opcode, shape, tuple(operands), inside, attributes)


def _balanced(text: str) -> int:
    """Where the parenthesis that the text begins with has been closed."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i + 1
    return len(text)


class Frames:
    """Which line of the source an operation comes from, by the tables at the text's head."""

    def __init__(self, text: str):
        head = text.partition("\n%")[0]
        self._files = dict(re.findall(r'^(\d+) "(.*)"$', _section(head, "FileNames"), re.M))
        self._places = {
            number: (file, line)
            for number, file, line in re.findall(
                r"^(\d+) \{file_name_id=(\d+).*? line=(\d+)", _section(head, "FileLocations"), re.M
            )
        }
        frames = _section(head, "StackFrames")
        self._frames = {
            number: (place, parent)
            for number, place, parent in re.findall(
                r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?", frames, re.M
            )
        }

    def label(self, operation: Operation) -> str:
        """What was written, where, and the operation's own name."""
        written = (operation.attribute(r'op_name="([^"]*)"') or "").rpartition("/")[2]
        frame = operation.attribute(r"stack_frame_id=(\d+)")
        # The innermost line of this library: those of its dependencies say less.
        while frame in self._frames:
            place, parent = self._frames[frame]
            file, line = self._places.get(place, ("", ""))
            path = self._files.get(file, "")
            if "/site-packages/" not in path:
                written += f" at {pathlib.PurePath(path).name}:{line}"
                break
            frame = str(int(parent or 1) - 1)  # 1 stands for none, n + 1 for frame n.
        return f"{written} ({operation.name})" if written else operation.name


def _section(head: str, name: str) -> str:
    return head.partition(f"\n{name}\n")[2].partition("\n\n")[0]
