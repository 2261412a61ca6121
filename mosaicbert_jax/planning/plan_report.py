"""A plan as tables for the terminal and Markdown, or as one record for scripts."""

import dataclasses
from typing import Any

from mosaicbert_jax.planning import published
from mosaicbert_jax.planning.collectives import seconds
from mosaicbert_jax.planning.gpu_time import Range, timing_of
from mosaicbert_jax.planning.plan import (
    Bought,
    Estimate,
    RunPrediction,
    Workload,
    gpu_hours_of,
)
from mosaicbert_jax.planning.profile import StepProfile
from mosaicbert_jax.pretraining.microbatch import MARGIN


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that was found out.

    Attributes:
      model: "base", "large" or None; see `published`.
      parameters: of the model.
      dtype: of its activations.
      duration: as given.
      memory_fraction: of the GPU's memory that JAX takes.
      limit: bytes of it that a step may take.
      largest: rows of the largest microbatch that fits, or None.
      measured: bytes that the step needs, by rows of its microbatches.
      predictions: by nodes; None where the batch does not divide so.
      bought: for the budget, if one was given.
    """

    workload: Workload
    profile: StepProfile
    model: str | None
    parameters: int
    dtype: str
    duration: str
    memory_fraction: float
    limit: int
    largest: int | None
    measured: dict[int, int]
    predictions: dict[int, RunPrediction | None]
    bought: Bought | None

    @property
    def first(self) -> RunPrediction:
        """On the first number of nodes, which the step was compiled for."""
        first = self.predictions[self.workload.nodes]
        assert first is not None, "the step was compiled for it"
        return first

    def to_dict(self) -> dict[str, Any]:
        """A JSON record, with what a reader would have to compute."""
        record = dataclasses.asdict(self)
        record["predicted"] = True
        record["fits"] = self.profile.needed <= self.limit
        record["needed_bytes"] = self.profile.needed
        if self.largest is not None:
            record["largest_microbatch_tokens"] = self.largest * self.workload.row_length
        record["published"] = [
            {**dataclasses.asdict(point), "predicted_hours": hours and dataclasses.asdict(hours)}
            for point, hours in self.points()
        ]
        return record

    def points(self) -> list[tuple[published.Point, Estimate | None]]:
        """The published runs of this model on this GPU, with the hours predicted for each."""
        return [
            (point, gpu_hours_of(self.workload, self.profile, point))
            for point in published.POINTS
            if (point.model, point.gpu) == (self.model, self.workload.gpu)
        ]


def text(plan: Plan) -> str:
    """For the terminal; it is Markdown too."""
    sections = [_title(plan), _memory(plan), _token(plan), _collectives(plan), _run(plan)]
    if plan.bought:
        sections.append(_bought(plan.bought))
    if len(plan.predictions) > 1:
        sections.append(scaling(plan))
    if plan.points():
        sections.append(_published(plan))
    return "\n\n".join(sections) + "\n"


def _table(*rows: tuple[str, ...]) -> str:
    """Aligned columns; the first row is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: tuple[str, ...]) -> str:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = f"| {' | '.join('-' * width for width in widths)} |"
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f}"


def _title(plan: Plan) -> str:
    work = plan.workload
    nodes = "1 node" if work.nodes == 1 else f"{work.nodes} nodes"
    data, fsdp, tensor = work.mesh
    return (
        f"{plan.parameters:,} parameters in {plan.dtype} on {work.nodes * work.devices} x "
        f"{work.kind.name} ({nodes}; in each, data {data}, fsdp {fsdp}, tensor {tensor}).\n"
        "Compiled without a GPU: every figure is predicted, none was measured."
    )


def _memory(plan: Plan) -> str:
    step, work = plan.profile, plan.workload
    gradients = min(step.parameter_bytes, step.temporary_bytes)
    verdict = "fits" if step.needed <= plan.limit else "does NOT fit"
    table = _table(
        ("memory of a device", "GB"),
        ("parameters, float32", _gb(step.parameter_bytes)),
        ("gradients, float32", _gb(gradients)),
        ("optimizer state", _gb(step.optimizer_bytes)),
        ("batch", _gb(step.other_lasting_bytes)),
        ("activations and other temporary memory", _gb(step.temporary_bytes - gradients)),
        ("all", _gb(step.needed)),
        (f"available ({verdict})", _gb(plan.limit)),
    )
    shape = (
        f"With {step.microbatches} microbatch(es) of {step.rows} rows of {work.row_length} tokens "
        f"(train.microbatch_tokens={step.rows * work.row_length}). To be had are "
        f"{_gb(work.kind.memory)} GB, of which JAX takes {plan.memory_fraction:.0%} unless told "
        f"otherwise (XLA_PYTHON_CLIENT_MEM_FRACTION), less a margin of {MARGIN:.0%}."
    )
    return f"{table}\n\n{shape}\n{_largest(plan)}"


def _largest(plan: Plan) -> str:
    compiled = ", ".join(f"{rows} rows {_gb(size)} GB" for rows, size in plan.measured.items())
    if plan.largest is None:
        return (
            f"Not one row fits; compiled: {compiled}. Divide the model over devices with "
            "--config.mesh.fsdp, or take a larger GPU."
        )
    share = plan.profile.rows * plan.profile.microbatches
    whole = ", all that a device has of the batch" if plan.largest == share else ""
    tokens = plan.largest * plan.workload.row_length
    return (
        f"The largest microbatch that fits: {plan.largest} rows{whole} "
        f"(train.microbatch_tokens={tokens}); compiled: {compiled}."
    )


def _token(plan: Plan) -> str:
    step, work = plan.profile, plan.workload
    slots = step.rows * step.microbatches * work.row_length
    model = work.token_flops / 1e6
    executed = step.executed_flops * work.mesh[2] / slots / 1e6
    return (
        f"A token takes {model:,.0f} MFLOP by the model, {executed:,.0f} as executed, and moves "
        f"{step.other_bytes / slots / 1e3:,.0f} KB through device memory outside matrix "
        f"products and {step.matmul_bytes / slots / 1e3:,.0f} KB in them (a step with its update, "
        f"on one device)."
    )


def _collectives(plan: Plan) -> str:
    step, work = plan.profile, plan.workload
    links = work.links
    assumed = (
        f"Rings over {links.inside / 1e9:,.0f} GB/s a device inside a node and "
        f"{links.between / 1e9:,.0f} GB/s a node between nodes; nothing is assumed to overlap."
    )
    if not step.collectives:
        return "No collectives on one node."
    groups: dict[tuple[str, int], list] = {}
    for one in step.collectives:
        groups.setdefault((one.kind, one.members), []).append(one)
    rows = [("collectives of a step", "how many", "MB", "predicted ms")]
    for (kind, members), group in groups.items():
        at = sum(seconds(o, links, node=work.devices, nodes=work.nodes) for o in group)
        rows.append(
            (
                f"{kind} over {members * (work.nodes if group[0].over_data else 1)}",
                str(sum(one.times for one in group)),
                f"{sum(one.times * one.bytes for one in group) / 1e6:,.1f}",
                f"{at * 1e3:,.2f}",
            )
        )
    return f"{_table(*rows)}\n\n{assumed}"


def _run(plan: Plan) -> str:
    found, work = plan.first, plan.workload
    table = _table(
        _ends(f"the run, {plan.duration}", found.step_seconds),
        _row("seconds a step", found.step_seconds, "{:,.3f}"),
        _row("tokens/s", found.tokens_per_second, "{:,.0f}"),
        _row("MFU", found.mfu, "{:.1%}"),
        _row("sequences, millions", found.sequences.map(lambda n: n / 1e6), "{:,.2f}"),
        _row("hours", found.hours, "{:,.2f}"),
        _row(f"price at {work.price:.2f} $ a GPU-hour", found.dollars, "{:,.2f} $"),
    )
    counted = f"{work.tokens_per_sequence:g} tokens a sequence"
    if work.slots_per_sequence != work.tokens_per_sequence:
        counted += f" in rows of {work.slots_per_sequence:g}, padding counted as tokens"
    return f"{table}\n\n{_model_of_time(plan)} {counted[0].upper()}{counted[1:]}; {_NOT_COUNTED}"


_NOT_COUNTED = "evaluations, checkpoints and the start are not counted."


def _model_of_time(plan: Plan) -> str:
    """What a step's time is made of, and what was assumed."""
    step, timing = plan.first.step, timing_of(plan.workload.kind)

    def milliseconds(time: Range) -> str:
        return f"{time.fast * 1e3:,.1f} to {time.slow * 1e3:,.1f} ms"

    def shares(share: Range) -> str:
        return f"{share.fast:.0%} to {share.slow:.0%}"

    words = (
        f"A step: matrix products {milliseconds(step.matmul)}, at {shares(timing.matmul)} of the "
        f"peak within their tiles, which cores take in whole waves; all else "
        f"{milliseconds(step.other)}, at {shares(timing.memory)} of the bandwidth, attention's "
        f"instructions and the launch of kernels; collectives {step.communication * 1e3:,.1f} ms."
    )
    mfu = published.MFU_BY_GPU.get(plan.workload.gpu)
    if mfu is None:
        return f"{words} No MosaicBERT runs on this GPU are published to compare it with."
    return (
        f"{words} The published runs: at the {mfu:.1%} MFU of the original PyTorch "
        "implementation's Base run on such GPUs."
    )


def _ends(heading: str, figure: Estimate) -> tuple[str, ...]:
    """The heading of a table of figures."""
    return heading, "fast", "slow", *([] if figure.published is None else [_AS_PUBLISHED])


_AS_PUBLISHED = "as fast as the published runs"


def _row(name: str, figure: Estimate, shown: str) -> tuple[str, ...]:
    ends = (figure.fast, figure.slow, figure.published)
    return name, *(shown.format(end) for end in ends if end is not None)


def _bought(bought: Bought) -> str:
    heading = f"{bought.dollars:,.2f} $ buy {bought.hours:,.2f} hours"
    return _table(
        _ends(heading, bought.tokens),
        _row("billion tokens", bought.tokens.map(lambda n: n / 1e9), "{:,.2f}"),
        _row("million sequences", bought.sequences.map(lambda n: n / 1e6), "{:,.2f}"),
    )


def scaling(plan: Plan) -> str:
    """The run on each number of nodes, fast and slow."""
    heading = (
        "nodes", "GPUs", "rows a GPU", "step ms", "links ms", "million tokens/s", "MFU", "hours",
        "price $",
    )  # fmt: skip
    rows = [heading]
    for nodes, found in plan.predictions.items():
        gpus = str(nodes * plan.workload.devices)
        if found is None:
            rows.append((str(nodes), gpus, "the batch's rows do not divide", *("",) * 6))
            continue
        step = found.step
        tokens = found.tokens_per_second
        rows.append(
            (
                str(nodes),
                gpus,
                str(step.rows * step.microbatches),
                _pair(found.step_seconds, 1e3, "{:,.1f}"),
                f"{step.communication * 1e3:,.1f}",
                _pair(tokens, 1e-6, "{:,.2f}"),
                _pair(found.mfu, 1, "{:.0%}"),
                _pair(found.hours, 1, "{:,.2f}"),
                _pair(found.dollars, 1, "{:,.0f}"),
            )
        )
    return f"{_table(*rows)}\n\nFast .. slow; the batch is the same everywhere."


def _pair(figure: Estimate, scale: float, shown: str) -> str:
    return f"{shown.format(figure.fast * scale)} .. {shown.format(figure.slow * scale)}"


def _published(plan: Plan) -> str:
    rows = [
        ("published for the original PyTorch implementation", "GPUs", "hours", "here, predicted")
    ]
    for point, hours in plan.points():
        here = _pair(hours, 1, "{:,.2f}") if hours else "its sequences are not published"
        rows.append((point.result, str(point.gpus), f"{point.hours:,.2f}", here))
    return (
        f"{_table(*rows)}\n\nHere: as many sequences as it read in that time (of MosaicBERT at the "
        "speed of its full run on 8 GPUs), fast .. slow."
    )
