"""The kernels of a profile, with what the compiled program says that each moves and computes."""

import collections
import dataclasses
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import jax

from mosaicbert_jax.planning.gpu_time import Range
from mosaicbert_jax.planning.traffic import Work, parse


@dataclasses.dataclass(frozen=True)
class Event:
    """One kernel's run: its name on the device, its instruction in the program, and seconds."""

    name: str
    instruction: str
    seconds: float


@dataclasses.dataclass
class KernelTime:
    """All runs of the kernels of one kind.

    Attributes:
      bytes, flops: of one step, as counted in the program; 0 where that is not known.
      predicted: seconds of one step, fast and slow; see `planning.gpu_time`.
    """

    name: str
    runs: int = 0
    seconds: float = 0.0
    bytes: int = 0
    flops: int = 0
    predicted: Range = dataclasses.field(default_factory=Range)


def traced(run: Callable[[], Any]) -> list[Event]:
    """What the GPU's streams did meanwhile, by JAX's profiler."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        events = []
        for path in pathlib.Path(folder).glob("**/*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
                if "gpu" in plane.name.lower():
                    events += _events_of(plane)
        return events


def _events_of(plane) -> Iterable[Event]:
    for line in plane.lines:
        if "Stream" in line.name:
            for event in line.events:
                instruction = str(dict(event.stats).get("hlo_op", ""))
                yield Event(event.name, instruction, event.duration_ns / 1e9)


def by_kernel(
    events: list[Event], program_text: str, predict: Callable[[Work], Range] = lambda work: Range()
) -> list[KernelTime]:
    """Longest first.

    Products are told apart by their shapes, Pallas kernels by their names, and what XLA made by the
    operation in it.

    Args:
      predict: seconds of an instruction, all its times together.
    """
    work = {one.instruction.name: one for one in parse(program_text).work()}
    found: dict[str, KernelTime] = {}
    counted = collections.defaultdict(set)
    for event in events:
        known = work.get(event.instruction)
        name = kind_of(known) if known else event.name[:60]
        kernel = found.setdefault(name, KernelTime(name))
        kernel.runs += 1
        kernel.seconds += event.seconds
        if known and event.instruction not in counted[name]:
            counted[name].add(event.instruction)
            kernel.bytes += known.bytes
            kernel.flops += known.flops
            kernel.predicted += predict(known)
    return sorted(found.values(), key=lambda kernel: -kernel.seconds)


def kind_of(work: Work) -> str:
    """What an instruction is called in the table."""
    if work.instruction.is_matmul:
        left, right = work.operands[:2]
        return f"product {left} · {right} -> {work.instruction.results[0]}"
    if work.instruction.is_kernel:
        return re.sub(r".*?(\w+)/pallas_call.*", r"\1", work.instruction.op_name)
    return f"XLA: {' and '.join(work.root_opcodes)}"
