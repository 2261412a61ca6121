"""The top of the page: a run in a dozen numbers and a few sentences."""

import dataclasses
import datetime
from collections.abc import Callable

import numpy as np

from mosaicbert_jax.reporting.formatting import duration, large, money, number, share
from mosaicbert_jax.reporting.history import History, State
from mosaicbert_jax.training.durations import UNITS, Duration
from mosaicbert_jax.training.flops import data_sheet_peak

_RECENT_ROWS = 10


@dataclasses.dataclass(frozen=True)
class KeyNumber:
    """A value with its label and a detail, not escaped."""

    label: str
    value: str
    detail: str = ""


def key_numbers(run: History) -> list[KeyNumber]:
    """The same labels for every run, so that runs can be compared side by side."""
    step, sequences = number(run.last("step")), f"{large(run.last('samples'))} sequences"
    done = run.last("share")
    speed = number(_median(run, "tokens_per_second"))
    packed, waited = _median(run, "packing_efficiency"), _median(run, "data_wait_fraction")
    return [
        KeyNumber("progress", share(done and min(done, 1.0)), f"of {_length(run)}"),
        KeyNumber("step", step, sequences),
        KeyNumber("real tokens", large(run.last("tokens"))),
        *_quality(run),
        KeyNumber("real tokens per second", speed, "median"),
        KeyNumber("MFU", share(_median(run, "mfu")), f"median; {mfu_meaning(run)}"),
        KeyNumber("packing efficiency", share(packed), "median; share of real tokens"),
        KeyNumber("waiting for data", share(waited), "median; share of training time"),
        *_cost(run),
    ]


def _length(run: History) -> str:
    """train.duration in words."""
    length = Duration.parse(run.record["config"]["train"]["duration"], key="train.duration")
    amount = length.amount
    shown = large(amount) if amount >= 1e6 else f"{amount:,g}"
    return f"{shown} {UNITS[length.unit].removesuffix('s' if amount == 1 else '')}"


def _quality(run: History) -> list[KeyNumber]:
    recent = run.column("loss")[-_RECENT_ROWS:]
    recent = recent[np.isfinite(recent)]
    mean = float(recent.mean()) if len(recent) else None
    found = [KeyNumber("training loss", number(mean, 4), f"mean of the last {len(recent)} rows")]
    last = run.evaluations[-1] if run.evaluations else {}
    at = f"step {number(last['step'])}" if last else "no evaluation yet"
    for key in ("loss", run.score or "masked_accuracy"):
        if "accuracy" in key or key == "loss":
            name = run.held_out_key(key)
            label = (name or key).removeprefix("eval_").replace("_", " ")
            shown = number(last.get(name), 4) if key == "loss" else share(last.get(name))
            found.append(KeyNumber(f"held-out {label}", shown, at))
    return found


def mfu_meaning(run: History) -> str:
    """What the MFU of a run is relative to."""
    if run.devices is None:
        return "relative to the data sheet's peak or a measured one"
    if data_sheet_peak(run.devices) is not None:
        return "relative to the data sheet's bfloat16 peak"
    return "relative to a matrix product measured at the start"


def _median(run: History, key: str) -> float | None:
    values = run.column(key)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None


def _cost(run: History) -> list[KeyNumber]:
    def spent(label: str, key: str, shown: Callable[[float | None], str]) -> KeyNumber:
        left = run.left(key)
        detail = "remainder unknown" if left is None else f"about {shown(left)} left"
        finished = run.state == State.FINISHED
        return KeyNumber(label, shown(run.last(key)), "finished" if finished else detail)

    found = [spent("training time", "seconds", duration)]
    return found if run.last("dollars") is None else [*found, spent("cost", "dollars", money)]


def state_sentence(run: History, now: datetime.datetime) -> str:
    """The state, the last step, and what to do or when metrics.jsonl was written."""
    step = run.last("step")
    at = "before the first row" if step is None else f"at step {number(step)}"
    if run.state == State.RUNNING:
        if run.written is None:
            return f"Running, {at}."
        ago = duration(max((now - run.written).total_seconds(), 0.0))
        return f"Running, {at}. The last row was written {ago} before this page."
    if run.state == State.NOT_RUNNING:
        if step is None:
            return "Not running; no row was written."
        why = "was killed or failed" if run.events else "ended without a recorded reason"
        return f"Not running; last row {at}. The run {why}."
    return {
        State.FINISHED: f"Finished {at}.",
        State.STOPPED: f"Stopped {at} with a checkpoint; run the same command to resume.",
        State.NOT_FINITE: f"Failed {at}: the loss is not finite.",
    }[run.state]


def remarks(run: History) -> list[str]:
    """What is missing from the curves."""
    found = []
    rows = run.training + run.evaluations
    for key in sorted({key for row in rows for key, value in row.items() if value is None}):
        steps = [row["step"] for row in rows if key in row and row[key] is None]
        found.append(
            f"{key} is not finite in {number(len(steps))} rows, first at step "
            f"{number(steps[0])}; its curve has a gap there."
        )
    if run.unread:
        found.append(f"{number(run.unread)} lines of metrics.jsonl are invalid.")
    return found
