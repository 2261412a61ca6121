"""A run in a dozen figures and a few sentences."""

import dataclasses
import datetime

import numpy as np

from mosaicbert_jax.reporting import figures
from mosaicbert_jax.reporting.history import (
    BROKEN,
    COMPLETE,
    ENDED,
    GOING_ON,
    INTERRUPTED,
    History,
)
from mosaicbert_jax.training.durations import UNITS, Duration
from mosaicbert_jax.training.flops import data_sheet_peak

_RECENT_ROWS = 10


@dataclasses.dataclass(frozen=True)
class Figure:
    """A value with what it is and what to know about it; not escaped."""

    label: str
    value: str
    detail: str = ""


def figures_of(history: History) -> list[Figure]:
    """The same labels for every run, so that runs can stand side by side."""
    return [
        Figure("completed", figures.share(_share(history)), f"of {_duration(history)}"),
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
    shown = figures.large(amount) if amount >= 1e6 else f"{amount:,g}"
    return f"{shown} {UNITS[duration.unit].removesuffix('s' if amount == 1 else '')}"


def _amounts(history: History) -> list[Figure]:
    sequences = figures.large(history.last("samples"))
    return [
        Figure("step", figures.number(history.last("step")), f"{sequences} sequences"),
        Figure("real tokens", figures.large(history.last("tokens"))),
    ]


def _quality(history: History) -> list[Figure]:
    recent = history.column("loss")[-_RECENT_ROWS:]
    recent = recent[np.isfinite(recent)]
    mean = float(recent.mean()) if len(recent) else None
    found = [Figure("training loss", figures.number(mean, 4), f"mean of {len(recent)} last rows")]
    last = history.evaluations[-1] if history.evaluations else {}
    score = history.score or "masked_accuracy"
    for key in ("loss", score):
        name = history.held_out_key(key)
        label = f"held-out {(name or key).removeprefix('eval_').replace('_', ' ')}"
        value = last.get(name)
        shown = figures.number(value, 4) if key == "loss" else figures.share(value)
        if "accuracy" in key or key == "loss":
            at = f"step {figures.number(last['step'])}" if last else "no evaluation yet"
            found.append(Figure(label, shown, at))
    return found


def _speed(history: History) -> list[Figure]:
    return [
        Figure(
            "real tokens a second",
            figures.number(_median(history, "tokens_per_second")),
            "median of the rows",
        ),
        Figure("MFU", figures.share(_median(history, "mfu")), f"median; {mfu_meaning(history)}"),
        Figure(
            "packing efficiency",
            figures.share(_median(history, "packing_efficiency")),
            "median; real tokens, of all slots",
        ),
        Figure(
            "waited for data",
            figures.share(_median(history, "data_wait_fraction")),
            "median; of the training time",
        ),
    ]


def mfu_meaning(history: History) -> str:
    """What the MFU of a run is a share of."""
    if history.devices is None:
        return "of the data sheet's peak, or of a measured one"
    if data_sheet_peak(history.devices) is not None:
        return "of the data sheet's bfloat16 peak"
    return "of a matrix product's speed, measured at the start"


def _median(history: History, key: str) -> float | None:
    values = history.column(key)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None


def _cost(history: History) -> list[Figure]:
    found = [
        Figure(
            "time of training",
            figures.time(history.last("seconds")),
            _left(history, figures.time(history.left("seconds"))),
        )
    ]
    if history.last("dollars") is not None:
        found.append(
            Figure(
                "money",
                figures.money(history.last("dollars")),
                _left(history, figures.money(history.left("dollars"))),
            )
        )
    return found


def _left(history: History, left: str) -> str:
    if history.state == COMPLETE:
        return "nothing left"
    if left == figures.NOT_KNOWN:
        return "what is left is not known"
    return f"about {left} left, at the pace of the last half"


def state_sentence(history: History, now: datetime.datetime) -> str:
    """How the run stands at this moment."""
    steps = history.last("step")
    where = "without a row yet" if steps is None else f"at step {figures.number(steps)}"
    if history.state == GOING_ON:
        ago = "" if history.written is None else _ago(now - history.written)
        return f"It is going on, {where}{ago}."
    told = {
        COMPLETE: f"It came to its end, {where}.",
        INTERRUPTED: f"It was stopped {where}, with a checkpoint; the same command goes on.",
        BROKEN: f"It ended {where} by a loss that is not finite.",
        ENDED: f"No process trains there, and its last row is {where}: it was killed or failed.",
    }
    if history.state == ENDED and steps is None:
        return "No process trains there, and it has not written a row."
    if history.state == ENDED and not history.events:
        return f"No process trains there; it was last {where}, and its rows don't say why it ended."
    return told[history.state]


def _ago(passed: datetime.timedelta) -> str:
    seconds = max(passed.total_seconds(), 0.0)
    return f"; metrics.jsonl was last written {figures.time(seconds)} before this page"


def remarks(history: History) -> list[str]:
    """What a reader of the curves must know: rows that are not there, or not whole."""
    found = []
    rows = history.training + history.evaluations
    for key in sorted({key for row in rows for key, value in row.items() if value is None}):
        steps = [row["step"] for row in rows if key in row and row[key] is None]
        found.append(
            f"{key} is not finite in {figures.number(len(steps))} of the rows, first at step "
            f"{figures.number(steps[0])}: a gap in its curve."
        )
    if history.unread:
        found.append(f"{figures.number(history.unread)} lines of metrics.jsonl are no rows.")
    return found
