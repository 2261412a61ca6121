"""The collectives of a compiled program, and how long they take on given links."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable

from mosaicbert_jax.planning.traffic import Instruction, Work

_KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a step.

    Attributes:
      kind: such as "all-reduce".
      bytes: of the whole array: an all-gather's result, any other's operands; each time.
      members: devices of a group.
      times: how often it runs in a step.
      over_data: whether its groups reach over the axis data, and so over all nodes.
      with_rows: whether its bytes grow with the rows of a microbatch; else with the parameters.
    """

    kind: str
    bytes: int
    members: int
    times: int
    over_data: bool
    with_rows: bool


@dataclasses.dataclass(frozen=True)
class Links:
    """Speeds, bytes/s.

    Attributes:
      inside: of a device, to the others of its node.
      between: of a whole node, to the other nodes.
    """

    inside: float = 600e9
    between: float = 200e9


def share_moved(kind: str, members: int) -> float:
    """The share of a collective's bytes that passes each device's link, as in a ring."""
    once = (members - 1) / members
    if kind == "all-reduce":
        return 2 * once
    if kind in ("collective-permute", "collective-broadcast"):
        return 1.0 if members > 1 else 0.0
    return once


def seconds(collective: Collective, links: Links, *, node: int, nodes: int) -> float:
    """How long a collective takes in a step, all times together, if nothing runs beside it.

    Args:
      node: devices of a node; the collective's members are within one.
      nodes: over which the axis data is laid, so that groups over it are as many times larger.
    """
    members, speed = collective.members, links.inside
    if collective.over_data and nodes > 1:
        # The groups of a node share its link to the others.
        speed = min(speed, links.between * members / node)
        members *= nodes
    moved = share_moved(collective.kind, members) * collective.bytes
    return collective.times * moved / speed


def is_collective(work: Work) -> bool:
    """Whether it is one, or either half of an asynchronous one."""
    return re.sub(r"-(start|done)$", "", work.instruction.opcode) in _KINDS


def read(
    work: Iterable[Work], *, mesh: tuple[int, int, int], fixed_sizes: set[int]
) -> list[Collective]:
    """The collectives of a compiled step.

    Args:
      mesh: devices along data, fsdp and tensor.
      fixed_sizes: elements of the arrays that do not grow with the rows: parameters and parts.
    """
    devices, inner = math.prod(mesh), mesh[1] * mesh[2]
    found = []
    for one in work:
        if not is_collective(one) or one.instruction.opcode.endswith("-done"):
            continue
        group = members_of(one.instruction, devices)
        kind = one.instruction.opcode.removesuffix("-start")
        size = sum(shape.bytes for shape in one.operands)
        found.append(
            Collective(
                kind=kind,
                bytes=size * len(group) if kind == "all-gather" else size,
                members=len(group),
                times=one.times,
                over_data=len({device // inner for device in group}) > 1,
                with_rows=bool(grows_with_rows(one, fixed_sizes)),
            )
        )
    return [one for one in found if one.members > 1]


_SMALL = 2**20


def grows_with_rows(work: Work, fixed_sizes: set[int]) -> bool | None:
    """Whether an instruction has more to do for more rows; None if its arrays are too small to say.

    It has if one of its arrays from 1 MiB on is not as large as a parameter, nor several joined,
    which have one axis.
    """
    large = [s for s in (*work.operands, *work.instruction.results) if s.bytes >= _SMALL]
    if not large:
        return None
    return any(
        len(shape.dimensions) > 1 and math.prod(shape.dimensions) not in fixed_sizes
        for shape in large
    )


def members_of(instruction: Instruction, devices: int) -> tuple[int, ...]:
    """The first group of devices that speak with each other.

    Raises:
      ValueError: the groups are written in a way that is not known here.
    """
    text = instruction.attributes
    if pair := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text):
        return tuple(sorted({int(pair[1]), int(pair[2])}))
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return tuple(int(device) for device in listed[1].split(","))
    if re.search(r"replica_groups=\{\}", text):
        return tuple(range(devices))
    counted = r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if found := re.search(counted, text):
        return _counted(int(found[2]), _numbers(found[3]), _numbers(found[4]))
    over_axes = (
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    )
    if found := re.search(over_axes + r"\s*\{([^}]*)\}", text):
        listed = _counted(devices, _numbers(found[2]) or (devices,), _numbers(found[3]))
        return tuple(listed[place] for place in _of_axes(found[1], found[4]))
    groups = re.search(r"replica_groups=\S+", text)
    raise ValueError(f"unknown groups of devices: {groups[0] if groups else text[:200]}")


def _numbers(text: str | None) -> tuple[int, ...]:
    return tuple(int(number) for number in (text or "").split(",") if number)


def _counted(size: int, shape: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    """The first of the groups that devices, counted over a transposed shape, are cut into."""
    order = order or tuple(range(len(shape)))
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    places = itertools.product(*(range(shape[axis]) for axis in order))
    devices = (
        sum(strides[axis] * at for axis, at in zip(order, place, strict=True)) for place in places
    )
    return tuple(itertools.islice(devices, size))


def _of_axes(mesh: str, named: str) -> tuple[int, ...]:
    """The places of the group over some axes of a mesh, such as 'a'=4,'b'=2 and 'a'."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    axes = re.findall(r"'(\w+)'(:\S+)?", named)
    if any(part for _, part in axes) or any(name not in sizes for name, _ in axes):
        raise ValueError(f"unknown groups of devices: mesh[{mesh}] {{{named}}}")
    names = list(sizes)
    strides = {
        name: math.prod(sizes[after] for after in names[place + 1 :])
        for place, name in enumerate(names)
    }
    steps = [range(0, sizes[name] * strides[name], strides[name]) for name, _ in axes]
    return tuple(sorted(sum(place) for place in itertools.product(*steps)))
