"""What a run will take: memory, time and price, reckoned from one compiled step. All predicted.

A step takes as long as its matrix products at 80 % of the GPU's peak, all other bytes at 90 % of
its memory's bandwidth, and its collectives on the links given, one after the other: that is the
roofline. The other end of each range is the roofline made as much slower as the published runs were
(planning/published.py).
"""

import dataclasses
import math

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.planning import collectives, published
from mosaicbert_jax.planning.collectives import Collective, Links
from mosaicbert_jax.planning.gpus import GPUS, Gpu
from mosaicbert_jax.planning.profile import StepProfile
from mosaicbert_jax.training.durations import Duration

MATMUL_SHARE, MEMORY_SHARE = 0.8, 0.9  # of the data sheet's figures, assumed
MEMORY_FRACTION = 0.75  # of a GPU's memory, which JAX takes unless it is told otherwise
# Dollars a GPU-hour: the original's for the A100s, round figures for the others.
PRICES = {"a100-40gb": 2.0, "a100-80gb": 2.5, "h100": 3.0, "h200": 3.5}


@dataclasses.dataclass(frozen=True)
class Range:
    """A figure at the roofline, and at the published efficiency."""

    roofline: float
    published: float


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is trained, on which machines.

    Attributes:
      gpu: a name of GPUS.
      devices: of a node.
      mesh: devices along data, fsdp and tensor, within a node.
      nodes: those that the profile was compiled for one of.
      batch_rows, row_length: of a step.
      slots_per_sequence: of a row that a sequence takes.
      tokens_per_sequence: real ones, on average.
      token_flops: of the model, a slot; see `model_flops_per_token`.
      links: between the devices.
      price: of a GPU-hour, dollars.
    """

    gpu: str
    devices: int
    mesh: tuple[int, int, int]
    nodes: int
    batch_rows: int
    row_length: int
    slots_per_sequence: float
    tokens_per_sequence: float
    token_flops: float
    links: Links
    price: float

    @property
    def kind(self) -> Gpu:
        """The GPU."""
        return GPUS[self.gpu]

    @property
    def batch_slots(self) -> int:
        """Of a step, padding counted."""
        return self.batch_rows * self.row_length


@dataclasses.dataclass(frozen=True)
class Step:
    """The time of a step on some nodes, at the roofline, in seconds.

    Attributes:
      rows, microbatches: of a device: rows of each, and how many one after the other.
      matmul, memory, communication: they add up.
      mfu: model FLOPs over the peak, padding counted as tokens.
    """

    nodes: int
    rows: int
    microbatches: int
    matmul: float
    memory: float
    communication: float
    mfu: float

    @property
    def seconds(self) -> float:
        """Of the step."""
        return self.matmul + self.memory + self.communication


def step_on(workload: Workload, profile: StepProfile, nodes: int) -> Step | None:
    """The step on so many nodes, the batch as it is; None if its rows do not divide so."""
    rows_here, rest = divmod(profile.rows * profile.microbatches * workload.nodes, nodes)
    if rest or not rows_here:
        return None
    share = workload.nodes / nodes
    microbatches = next(
        n for n in range(1, rows_here + 1) if rows_here % n == 0 and rows_here // n <= profile.rows
    )
    more = microbatches / profile.microbatches
    gpu = workload.kind
    slots = workload.batch_slots / (workload.devices * nodes)  # a device's, all of tensor's
    model_flops = workload.token_flops * slots
    flops = max(model_flops, profile.executed_flops * share)
    moved = profile.row_bytes * share + profile.step_bytes + profile.microbatch_bytes * more
    matmul = flops / (MATMUL_SHARE * gpu.peak_flops)
    memory = moved / (MEMORY_SHARE * gpu.memory_bandwidth)
    communication = sum(
        collectives.seconds(one, workload.links, node=workload.devices, nodes=nodes)
        * _change(one, profile.microbatches, share, more)
        for one in (*profile.collectives, *_between_nodes(workload, profile, nodes))
    )
    seconds = matmul + memory + communication
    return Step(
        nodes=nodes,
        rows=rows_here // microbatches,
        microbatches=microbatches,
        matmul=matmul,
        memory=memory,
        communication=communication,
        mfu=model_flops / (seconds * gpu.peak_flops),
    )


def _change(one: Collective, microbatches: int, share: float, more: float) -> float:
    """By how much more of a collective there is than as compiled."""
    if one.with_rows:
        return share
    return more if microbatches > 1 and one.times % microbatches == 0 else 1.0


def _between_nodes(workload: Workload, profile: StepProfile, nodes: int) -> list[Collective]:
    """The sum of gradients over nodes, where the step of one node has nobody to add up with."""
    if nodes == 1 or workload.mesh[0] > 1:
        return []
    gradients = profile.parameter_bytes
    return [Collective("all-reduce", gradients, 1, profile.microbatches, True, False)]


def slowdown(workload: Workload, profile: StepProfile) -> float:
    """How many times longer than at the roofline a step took in the published runs."""
    one = step_on(workload, profile, 1)
    mfu = published.MFU_BY_GPU.get(workload.gpu, one.mfu * published.SHARE_OF_ROOFLINE)
    return max(1.0, one.mfu / mfu)


def run_slots(workload: Workload, duration: Duration) -> float | None:
    """How many slots a run takes; None if its duration is a time, or the price of one.

    Raises:
      UserError: epochs, whose length the data decides.
    """
    sequences = {
        "sp": duration.amount,
        "tok": duration.amount / workload.tokens_per_sequence,
        "ba": duration.amount * workload.batch_slots / workload.slots_per_sequence,
    }.get(duration.unit)
    if duration.unit == "ep":
        raise UserError(
            f"train.duration={duration.amount:g}ep: how long an epoch is depends on the data, "
            "which a plan does not read; give steps (ba), sequences (sp), real tokens (tok) or time"
        )
    return None if sequences is None else sequences * workload.slots_per_sequence


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A run on some nodes.

    Attributes:
      step: at the roofline.
      speedup: over the first number of nodes, at the roofline.
      tokens_per_second: padding counted, all devices together.
      mfu: likewise.
      hours, dollars: of the whole run.
      sequences: that it reads.
    """

    nodes: int
    gpus: int
    step: Step
    step_seconds: Range
    tokens_per_second: Range
    mfu: Range
    hours: Range
    dollars: Range
    sequences: Range


def predict(
    workload: Workload, profile: StepProfile, duration: Duration, nodes: int
) -> Prediction | None:
    """The whole run on so many nodes; None if the batch does not divide so."""
    step = step_on(workload, profile, nodes)
    if step is None:
        return None
    slower = slowdown(workload, profile)
    gpus = nodes * workload.devices
    slots = run_slots(workload, duration)

    def both(roofline: float, factor: float) -> Range:
        return Range(roofline, roofline * factor)

    rate = both(workload.batch_slots / step.seconds, 1 / slower)
    if slots is None:
        seconds_of = {"s": 1, "m": 60, "h": 3600, "usd": 3600 / (workload.price * gpus)}
        seconds = duration.amount * seconds_of[duration.unit]
        hours = both(seconds / 3600, 1.0)
        sequences = Range(
            *(per_second * seconds / workload.slots_per_sequence for per_second in
              (rate.roofline, rate.published))
        )  # fmt: skip
    else:
        steps = math.ceil(slots / workload.batch_slots)
        hours = both(steps * step.seconds / 3600, slower)
        sequences = both(slots / workload.slots_per_sequence, 1.0)
    return Prediction(
        nodes=nodes,
        gpus=gpus,
        step=step,
        step_seconds=both(step.seconds, slower),
        tokens_per_second=rate,
        mfu=both(step.mfu, 1 / slower),
        hours=hours,
        dollars=both(hours.roofline * gpus * workload.price, hours.published / hours.roofline),
        sequences=sequences,
    )


@dataclasses.dataclass(frozen=True)
class Bought:
    """What a budget buys: hours on all GPUs, slots (padding counted) and sequences."""

    dollars: float
    hours: float
    tokens: Range
    sequences: Range


def buy(workload: Workload, prediction: Prediction, dollars: float) -> Bought:
    """What a budget buys on the nodes of a prediction."""
    hours = dollars / (workload.price * prediction.gpus)
    rate = prediction.tokens_per_second
    tokens = Range(rate.roofline * hours * 3600, rate.published * hours * 3600)
    each = workload.slots_per_sequence
    return Bought(dollars, hours, tokens, Range(tokens.roofline / each, tokens.published / each))


def gpu_hours_of(workload: Workload, profile: StepProfile, point: published.Point) -> Range | None:
    """What a published run of this model would take here, in hours on its GPUs."""
    nodes = point.gpus // workload.devices
    if point.sequences is None or point.gpus % workload.devices or point.gpu != workload.gpu:
        return None
    duration = Duration(point.sequences, "sp")
    prediction = predict(workload, profile, duration, nodes)
    return prediction and prediction.hours
