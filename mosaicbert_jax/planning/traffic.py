"""What a compiled program moves through device memory, read from its optimized HLO.

An instruction reads its operands and writes its results once, as if nothing stayed in a cache
between two instructions. What is not whole is counted as what is touched:

- an operand that is only sliced or gathered from: as much as is taken out of it;
- an array updated in place (dynamic-update-slice, scatter): as much as the update holds;
- an operand given twice: once; a matrix product's workspace: nothing.

A loop counts its body as often as it runs, or once where that is not known; a conditional its
heaviest branch; an asynchronous pair counts once.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota",
    "partition-id", "replica-id", "opt-barrier", "add-dependency",
}  # fmt: skip
_TRANSPARENT = {"bitcast", "reshape", "convert", "copy"}  # hand on an operand element by element
_TAKING = {"slice", "dynamic-slice", "gather"}
_PUTTING = {"dynamic-update-slice": 1, "scatter": 2}  # which operand is the update
_BITS = {"pred": 8, "token": 0, "c64": 64, "c128": 128}


@dataclasses.dataclass(frozen=True)
class Shape:
    """A dense array, such as bf16[256,128]."""

    dtype: str
    dimensions: tuple[int, ...]

    @functools.cached_property
    def bytes(self) -> int:
        """As many as its elements fill, two 4-bit ones sharing a byte."""
        bits = _BITS[self.dtype] if self.dtype in _BITS else int(re.search(r"\d+", self.dtype)[0])
        return -(-math.prod(self.dimensions) * bits // 8)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dimensions))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      results: its arrays, a tuple's one after the other.
      operands: names of instructions in the same computation; a parameter's: its number.
      attributes: what follows the operands, as printed.
    """

    name: str
    opcode: str
    results: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool = False

    def attribute(self, pattern: str) -> str:
        """The first group of a pattern in the attributes, or an empty string."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""

    @property
    def op_name(self) -> str:
        """What JAX called the operation that it came from."""
        return self.attribute(r'op_name="([^"]*)"')

    @property
    def is_matmul(self) -> bool:
        """Whether it is a matrix product in cuBLAS."""
        return self.attribute(r'custom_call_target="([^"]*)"').startswith("__cublas")

    @property
    def is_kernel(self) -> bool:
        """Whether it is a Pallas kernel."""
        return self.attribute(r'custom_call_target="([^"]*)"') == "__gpu$xla.gpu.triton"


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Work:
    """An instruction that does work.

    Attributes:
      operands: their arrays, whole and as often as they are given.
      times: how often it runs.
      read, written: bytes through device memory, all times together.
      flops: of a matrix product, all times together; 0 of all else.
      fused: the instructions of the fusion that it is; else itself.
    """

    instruction: Instruction
    operands: tuple[Shape, ...]
    times: int
    read: int
    written: int
    flops: int
    fused: tuple[Instruction, ...]

    @property
    def bytes(self) -> int:
        """Read and written."""
        return self.read + self.written

    @property
    def root_opcodes(self) -> tuple[str, ...]:
        """What the results were made by, conversions and bitcasts looked through."""
        if self.instruction.opcode != "fusion":
            return (self.instruction.opcode,)
        computation = {instruction.name: instruction for instruction in self.fused}
        made = (_source(computation, root) for root in _roots(computation))
        return tuple(sorted({instruction.opcode for instruction in made}))


@dataclasses.dataclass(frozen=True)
class Module:
    """A parsed program.

    Attributes:
      computations: by name.
      entry: name of the one that runs.
      frames: for each stack frame of the program's source, its function and the frame that called
        it (0: none).
    """

    computations: dict[str, Computation]
    entry: str
    frames: dict[int, tuple[str, int]]

    def work(self) -> list[Work]:
        """Every instruction that does work, in the order of the program, loops unrolled once."""
        return list(self._work(self.entry, 1))

    def functions(self, instruction: Instruction) -> tuple[str, ...]:
        """The Python functions that it was written in, innermost first."""
        frame, names = int(instruction.attribute(r"stack_frame_id=(\d+)") or 0), []
        while frame in self.frames:
            name, frame = self.frames[frame]
            names.append(name)
        return tuple(names)

    def _work(self, name: str, times: int) -> Iterator[Work]:
        computation = self.computations[name]
        for instruction in computation.values():
            if instruction.opcode in _FREE:
                continue
            if instruction.opcode == "while":
                runs = int(instruction.attribute(r'known_trip_count":\{"n":"(\d+)"') or 1)
                yield from self._work(instruction.attribute(r"body=%([\w.\-]+)"), times * runs)
            elif instruction.opcode == "call":
                yield from self._work(instruction.attribute(r"to_apply=%([\w.\-]+)"), times)
            elif instruction.opcode == "conditional":
                named = _NAME.findall(instruction.attributes)
                branches = [list(self._work(n, times)) for n in named if n in self.computations]
                yield from max(branches, key=lambda branch: sum(one.bytes for one in branch))
            else:
                yield self._of(instruction, computation, times)

    def _of(self, instruction: Instruction, computation: Computation, times: int) -> Work:
        called = {}
        if instruction.opcode == "fusion":
            called = self.computations[instruction.attribute(r"calls=%([\w.\-]+)")]
        fused = called or _alone(instruction, computation)
        outer = instruction.operands if called else tuple(dict.fromkeys(instruction.operands))
        read: dict[str, int] = {}  # by the operand's name: what stands twice is read once
        for parameter, name in zip(_parameters(fused), outer, strict=True):
            read[name] = max(read.get(name, 0), _bytes_read(fused, parameter))
        written = sum(_bytes_written(fused, root) for root in _roots(fused))
        if instruction.opcode.endswith("-start"):
            written = 0  # the other half of the pair has it
        elif instruction.opcode.endswith(("-done", "-update")):
            read = {}
            written = written if instruction.opcode.endswith("-done") else 0
        if instruction.is_matmul:
            written = instruction.results[0].bytes
        operands = [computation[name].results for name in instruction.operands]
        return Work(
            instruction=instruction,
            operands=tuple(shape for shapes in operands for shape in shapes),
            times=times,
            read=times * sum(read.values()),
            written=times * written,
            flops=times * _matmul_flops(instruction, operands) if instruction.is_matmul else 0,
            fused=tuple(called.values()) or (instruction,),
        )


def _alone(instruction: Instruction, computation: Computation) -> Computation:
    """The computation that a fusion of this one instruction would have."""
    parameters = {
        name: Instruction(name, "parameter", computation[name].results, (str(number),), "")
        for number, name in enumerate(dict.fromkeys(instruction.operands))
    }
    return parameters | {instruction.name: dataclasses.replace(instruction, is_root=True)}


def _parameters(computation: Computation) -> list[Instruction]:
    """In the order of the operands that they stand for."""
    found = [made for made in computation.values() if made.opcode == "parameter"]
    return sorted(found, key=lambda parameter: int(parameter.operands[0]))


def _roots(computation: Computation) -> list[Instruction]:
    """What makes the results, one instruction for each of a tuple's."""
    root = next(instruction for instruction in computation.values() if instruction.is_root)
    return [computation[name] for name in root.operands] if root.opcode == "tuple" else [root]


def _source(computation: Computation, instruction: Instruction) -> Instruction:
    """The instruction, or the one whose elements it hands on."""
    while instruction.opcode in _TRANSPARENT and len(instruction.operands) == 1:
        source = computation[instruction.operands[0]]
        if source.opcode == "parameter":
            break
        instruction = source
    return instruction


def _update(computation: Computation, instruction: Instruction) -> Shape | None:
    """The update of an instruction that puts it into an array of its computation's caller."""
    if instruction.opcode not in _PUTTING:
        return None
    into = _source(computation, computation[instruction.operands[0]])
    while into.opcode in _TRANSPARENT:
        into = computation[into.operands[0]]
    if into.opcode != "parameter":
        return None
    return computation[instruction.operands[_PUTTING[instruction.opcode]]].results[0]


def _bytes_read(computation: Computation, parameter: Instruction) -> int:
    """What a computation reads of one of its parameters."""
    whole = sum(shape.bytes for shape in parameter.results)
    taken, pending = 0, [parameter.name]
    while pending:
        name = pending.pop()
        for user in computation.values():
            if user.opcode == "parameter" or name not in user.operands:
                continue
            only_first = user.operands[0] == name and name not in user.operands[1:]
            if user.opcode in _TRANSPARENT and not user.is_root:
                pending.append(user.name)
            elif user.opcode in _TAKING and only_first:
                elements = math.prod(user.results[0].dimensions)
                taken += Shape(parameter.results[0].dtype, (elements,)).bytes
            elif only_first and (update := _update(computation, user)):
                taken += update.bytes if user.opcode == "scatter" else 0  # that adds to what is
            else:
                return whole
    return min(taken, whole)


def _bytes_written(computation: Computation, root: Instruction) -> int:
    if update := _update(computation, _source(computation, root)):
        return update.bytes
    return sum(shape.bytes for shape in root.results)


def _matmul_flops(instruction: Instruction, operands: list[tuple[Shape, ...]]) -> int:
    contracted = instruction.attribute(r'"lhs_contracting_dimensions":\[([\d",]*)\]')
    left = operands[0][0].dimensions
    depth = math.prod(left[int(axis)] for axis in re.findall(r"\d+", contracted))
    return 2 * depth * math.prod(instruction.results[0].dimensions)


_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")


def parse(text: str) -> Module:
    """Reads `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    tables: dict[str, dict[int, str]] = {}
    entry, current, table = "", None, None
    for line in text.splitlines():
        if line.startswith((" ", "\t")):
            if current is not None and (instruction := _instruction(line)):
                current[instruction.name] = instruction
        elif line.endswith("{") and (header := _NAME.search(line)):
            current = computations.setdefault(header[1], {})
            entry = header[1] if line.startswith("ENTRY") else entry
        elif line in ("FunctionNames", "FileLocations", "StackFrames"):
            table = tables.setdefault(line, {})
        elif table is not None and (row := re.match(r"(\d+) (.*)", line)):
            table[int(row[1])] = row[2]
        else:
            current = table = None
    return Module(computations, entry, _frames(tables))


def _instruction(line: str) -> Instruction | None:
    line = re.sub(r"/\*.*?\*/", "", line).strip()
    name, equals, rest = line.partition(" = ")
    if not equals:
        return None
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    shapes, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing(rest)
    inside = rest[len(opcode) + 1 : end - 1]
    operands = (inside,) if opcode == "parameter" else tuple(_NAME.findall(inside))
    return Instruction(
        name=name.removeprefix("ROOT ").removeprefix("%"),
        opcode=opcode,
        results=tuple(
            Shape(dtype, tuple(int(size) for size in sizes.split(",") if size))
            for dtype, sizes in _SHAPE.findall(shapes)
        ),
        operands=() if opcode == "constant" else operands,
        attributes=rest[end:],
        is_root=name.startswith("ROOT "),
    )


def _closing(text: str) -> int:
    """One past the parenthesis that closes the first one."""
    depth = 0
    for place in re.finditer(r"[()]", text):
        depth += 1 if place[0] == "(" else -1
        if not depth:
            return place.end()
    return len(text)


def _frames(tables: dict[str, dict[int, str]]) -> dict[int, tuple[str, int]]:
    functions = {
        number: name.strip('"') for number, name in tables.get("FunctionNames", {}).items()
    }

    def field(row: str, name: str) -> int:
        found = re.search(rf"{name}=(\d+)", row)
        return int(found[1]) if found else 0

    locations = {
        number: functions.get(field(row, "function_name_id"), "")
        for number, row in tables.get("FileLocations", {}).items()
    }
    return {
        number: (
            locations.get(field(row, "file_location_id"), ""),
            max(field(row, "parent_frame_id") - 1, 0),  # printed one too high, so that 0 is none
        )
        for number, row in tables.get("StackFrames", {}).items()
    }
