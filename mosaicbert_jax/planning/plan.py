"""Memory, time and price of a run, predicted from one compiled step.

A step's time is the sum of its instructions' (planning/gpu_time.py) and of its collectives' on the
given links: a range, from fast to slow. Where runs on such GPUs are published, each figure is also
given at their efficiency (planning/published.py).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Self

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.planning import collectives, published
from mosaicbert_jax.planning.collectives import Collective, Links
from mosaicbert_jax.planning.gpu_time import Range
from mosaicbert_jax.planning.gpus import GPUS, Gpu
from mosaicbert_jax.planning.profile import StepProfile
from mosaicbert_jax.training.durations import Duration

MEMORY_FRACTION = 0.75  # of a GPU's memory, which JAX takes by default
# Dollars a GPU-hour: the original's for the A100s, round figures for the others.
PRICES = {"a100-40gb": 2.0, "a100-80gb": 2.5, "h100": 3.0, "h200": 3.5}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A predicted figure.

    Attributes:
      fast, slow: if all goes well, and if it doesn't.
      published: at the efficiency of published runs on such GPUs; None: there are none.
    """

    fast: float
    slow: float
    published: float | None

    def map(self, change: Callable[[float], float]) -> Self:
        """Each of them changed."""
        published = None if self.published is None else change(self.published)
        return type(self)(change(self.fast), change(self.slow), published)


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
    """The time of a step on some nodes, in seconds.

    Attributes:
      rows, microbatches: of a device: rows of each, and how many one after the other.
      matmul, other, communication: they add up.
    """

    nodes: int
    rows: int
    microbatches: int
    matmul: Range
    other: Range
    communication: float

    @property
    def seconds(self) -> Range:
        """Of the step."""
        return self.matmul + self.other + Range(self.communication, self.communication)


def step_on(workload: Workload, profile: StepProfile, nodes: int) -> Step | None:
    """The step on so many nodes, the batch as it is; None if its rows do not divide so.

    What grows with the rows is scaled in proportion: waves are not recounted.
    """
    rows_here, rest = divmod(profile.rows * profile.microbatches * workload.nodes, nodes)
    if rest or not rows_here:
        return None
    share = workload.nodes / nodes
    microbatches = next(
        n for n in range(1, rows_here + 1) if rows_here % n == 0 and rows_here // n <= profile.rows
    )
    more = microbatches / profile.microbatches
    communication = sum(
        collectives.seconds(one, workload.links, node=workload.devices, nodes=nodes)
        * _change(one, profile.microbatches, share, more)
        for one in (*profile.collectives, *_between_nodes(workload, profile, nodes))
    )
    return Step(
        nodes=nodes,
        rows=rows_here // microbatches,
        microbatches=microbatches,
        matmul=profile.matmul_seconds * share,
        other=profile.row_seconds * share
        + profile.step_seconds
        + profile.microbatch_seconds * more,
        communication=communication,
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


def step_seconds(workload: Workload, profile: StepProfile, step: Step) -> Estimate:
    """How long a step takes.

    At the published efficiency: that of a step on one node, from which more nodes take it as far as
    the middle of the range goes.
    """
    mfu, published_seconds = published.MFU_BY_GPU.get(workload.gpu), None
    if mfu is not None:
        slots = workload.batch_slots / workload.devices
        on_one_node = slots * workload.token_flops / (mfu * workload.kind.peak_flops)
        published_seconds = on_one_node * step.seconds.middle
        published_seconds /= step_on(workload, profile, 1).seconds.middle
    return Estimate(step.seconds.fast, step.seconds.slow, published_seconds)


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
class RunPrediction:
    """A run on some nodes.

    Attributes:
      tokens_per_second: padding counted, all devices together.
      mfu: model FLOPs over the peak, padding counted as tokens.
      hours, dollars: of the whole run.
      sequences: that it reads.
    """

    nodes: int
    gpus: int
    step: Step
    step_seconds: Estimate
    tokens_per_second: Estimate
    mfu: Estimate
    hours: Estimate
    dollars: Estimate
    sequences: Estimate


def predict(
    workload: Workload, profile: StepProfile, duration: Duration, nodes: int
) -> RunPrediction | None:
    """The whole run on so many nodes; None if the batch does not divide so."""
    step = step_on(workload, profile, nodes)
    if step is None:
        return None
    gpus = nodes * workload.devices
    slots = run_slots(workload, duration)
    each = step_seconds(workload, profile, step)
    rate = each.map(lambda seconds: workload.batch_slots / seconds)
    if slots is None:
        seconds_of = {"s": 1, "m": 60, "h": 3600, "usd": 3600 / (workload.price * gpus)}
        seconds = duration.amount * seconds_of[duration.unit]
        hours = each.map(lambda _: seconds / 3600)
        sequences = rate.map(lambda slots: slots * seconds / workload.slots_per_sequence)
    else:
        steps = math.ceil(slots / workload.batch_slots)
        hours = each.map(lambda seconds: steps * seconds / 3600)
        sequences = each.map(lambda _: slots / workload.slots_per_sequence)
    peak = gpus * workload.kind.peak_flops
    return RunPrediction(
        nodes=nodes,
        gpus=gpus,
        step=step,
        step_seconds=each,
        tokens_per_second=rate,
        mfu=rate.map(lambda slots: slots * workload.token_flops / peak),
        hours=hours,
        dollars=hours.map(lambda hours: hours * gpus * workload.price),
        sequences=sequences,
    )


@dataclasses.dataclass(frozen=True)
class Bought:
    """What a budget buys: hours on all GPUs, slots (padding counted) and sequences."""

    dollars: float
    hours: float
    tokens: Estimate
    sequences: Estimate


def buy(workload: Workload, prediction: RunPrediction, dollars: float) -> Bought:
    """What a budget buys on the nodes of a prediction."""
    hours = dollars / (workload.price * prediction.gpus)
    tokens = prediction.tokens_per_second.map(lambda rate: rate * hours * 3600)
    sequences = tokens.map(lambda slots: slots / workload.slots_per_sequence)
    return Bought(dollars, hours, tokens, sequences)


def gpu_hours_of(
    workload: Workload, profile: StepProfile, point: published.Point
) -> Estimate | None:
    """What a published run of this model would take here, in hours on its GPUs."""
    nodes = point.gpus // workload.devices
    if point.sequences is None or point.gpus % workload.devices or point.gpu != workload.gpu:
        return None
    duration = Duration(point.sequences, "sp")
    prediction = predict(workload, profile, duration, nodes)
    return None if prediction is None else prediction.hours
