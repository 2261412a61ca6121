"""The top of the page: a run in a dozen numbers and a few sentences."""

import dataclasses
import datetime

import numpy as np

from mosaicbert_jax.reporting import formatting
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


def key_numbers(history: History) -> list[KeyNumber]:
    """The same labels for every run, so that runs can be compared side by side."""
    return [
        KeyNumber("progress", formatting.share(_share(history)), f"of {_duration(history)}"),
        *_amounts(history),
        *_quality(history),
        *_speed(history),
        *_cost(history),
    ]


def _share(history: History) -> float | None:
    share = history.last("share")
    return None if share is None else min(share, 1.0)


def _duration(history: History) -> str:
    duration = Duration.parse(history.record["config"]["train"]["duration"], key="train.duration")
    amount = duration.amount
    shown = formatting.large(amount) if amount >= 1e6 else f"{amount:,g}"
    return f"{shown} {UNITS[duration.unit].removesuffix('s' if amount == 1 else '')}"


def _amounts(history: History) -> list[KeyNumber]:
    sequences = formatting.large(history.last("samples"))
    return [
        KeyNumber("step", formatting.number(history.last("step")), f"{sequences} sequences"),
        KeyNumber("real tokens", formatting.large(history.last("tokens"))),
    ]


def _quality(history: History) -> list[KeyNumber]:
    recent = history.column("loss")[-_RECENT_ROWS:]
    recent = recent[np.isfinite(recent)]
    mean = float(recent.mean()) if len(recent) else None
    found = [
        KeyNumber(
            "training loss", formatting.number(mean, 4), f"mean of the last {len(recent)} rows"
        )
    ]
    last = history.evaluations[-1] if history.evaluations else {}
    score = history.score or "masked_accuracy"
    for key in ("loss", score):
        name = history.held_out_key(key)
        label = f"held-out {(name or key).removeprefix('eval_').replace('_', ' ')}"
        value = last.get(name)
        shown = formatting.number(value, 4) if key == "loss" else formatting.share(value)
        if "accuracy" in key or key == "loss":
            at = f"step {formatting.number(last['step'])}" if last else "no evaluation yet"
            found.append(KeyNumber(label, shown, at))
    return found


def _speed(history: History) -> list[KeyNumber]:
    return [
        KeyNumber(
            "real tokens per second",
            formatting.number(_median(history, "tokens_per_second")),
            "median",
        ),
        KeyNumber(
            "MFU", formatting.share(_median(history, "mfu")), f"median; {mfu_meaning(history)}"
        ),
        KeyNumber(
            "packing efficiency",
            formatting.share(_median(history, "packing_efficiency")),
            "median; share of real tokens",
        ),
        KeyNumber(
            "waiting for data",
            formatting.share(_median(history, "data_wait_fraction")),
            "median; share of training time",
        ),
    ]


def mfu_meaning(history: History) -> str:
    """What the MFU of a run is relative to."""
    if history.devices is None:
        return "relative to the data sheet's peak or a measured one"
    if data_sheet_peak(history.devices) is not None:
        return "relative to the data sheet's bfloat16 peak"
    return "relative to a matrix product measured at the start"


def _median(history: History, key: str) -> float | None:
    values = history.column(key)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None


def _cost(history: History) -> list[KeyNumber]:
    found = [
        KeyNumber(
            "training time",
            formatting.time(history.last("seconds")),
            _left(history, formatting.time(history.left("seconds"))),
        )
    ]
    if history.last("dollars") is not None:
        found.append(
            KeyNumber(
                "cost",
                formatting.money(history.last("dollars")),
                _left(history, formatting.money(history.left("dollars"))),
            )
        )
    return found


def _left(history: History, left: str) -> str:
    if history.state == State.FINISHED:
        return "finished"
    return (
        "unknown left" if left == formatting.NOT_KNOWN else f"about {left} left at the recent pace"
    )


def state_sentence(history: History, now: datetime.datetime) -> str:
    """The state, the last step, and what to do or when metrics.jsonl was written."""
    step = history.last("step")
    at = "before the first row" if step is None else f"at step {formatting.number(step)}"
    match history.state:
        case State.RUNNING:
            ago = "" if history.written is None else _ago(now - history.written)
            return f"Running, {at}.{ago}"
        case State.FINISHED:
            return f"Finished {at}."
        case State.STOPPED:
            return f"Stopped {at} with a checkpoint; run the same command to resume."
        case State.NOT_FINITE:
            return f"Failed {at}: the loss is not finite."
    if step is None:
        return "Not running; no row was written."
    if not history.events:
        return f"Not running; last row {at}. The rows do not say why the run ended."
    return f"Not running; last row {at}. The run was killed or failed."


def _ago(passed: datetime.timedelta) -> str:
    seconds = max(passed.total_seconds(), 0.0)
    return f" The last row was written {formatting.time(seconds)} before this page."


def remarks(history: History) -> list[str]:
    """What is missing from the curves."""
    found = []
    rows = history.training + history.evaluations
    for key in sorted({key for row in rows for key, value in row.items() if value is None}):
        steps = [row["step"] for row in rows if key in row and row[key] is None]
        found.append(
            f"{key} is not finite in {formatting.number(len(steps))} rows, first at step "
            f"{formatting.number(steps[0])}; its curve has a gap there."
        )
    if history.unread:
        found.append(f"{formatting.number(history.unread)} lines of metrics.jsonl are invalid.")
    return found
