"""Reads a run's folder, also while the run is going on."""

import dataclasses
import datetime
import functools
import json
import math
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.storage import workdir
from mosaicbert_jax.training.metrics import FINISHED, METRICS_FILE, STOPPED

GOING_ON, COMPLETE, INTERRUPTED, BROKEN, ENDED = (
    "going on", "finished", "stopped", "stopped by a loss that is not finite", "not going on",
)  # fmt: skip

_RECENT = 0.5  # of the rows: what the pace of what is left is taken from

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class History:
    """What is known of a run.

    Attributes:
      name: that tells it from other runs of a page.
      record: config.json.
      training, evaluations, events: rows of metrics.jsonl, see README.md.
      unread: lines of metrics.jsonl that are no rows; the last, half-written one is not counted.
      is_going_on: whether a process trains there.
      written: when metrics.jsonl was written to; None where it is not there.
      scores: of results.json, by name; None where it is not there.
    """

    name: str
    record: dict[str, Any]
    training: list[Row]
    evaluations: list[Row]
    events: list[Row]
    unread: int
    is_going_on: bool
    written: datetime.datetime | None
    scores: dict[str, Any] | None

    @classmethod
    def read(cls, folder: pathlib.Path, name: str) -> "History":
        """Reads what is there.

        Raises:
          UserError: the folder holds no run.
        """
        record = workdir.read_record(folder)
        if workdir.CONVERTED_FROM in record:
            raise UserError(f"{folder} holds a converted model, and no run to report on")
        train = record["config"].get("train")
        if not isinstance(train, dict) or not isinstance(train.get("duration"), str):
            raise UserError(
                f"{folder / workdir.CONFIG_FILE} has no train.duration: no run's record"
            )
        # Before the rows: a run that ends meanwhile is then told by its last row.
        is_going_on = workdir.is_locked(folder)
        rows, unread, written = _read_rows(folder / METRICS_FILE)
        results = read_results(folder)
        return cls(
            name=name,
            record=record,
            training=[row for row in rows if "loss" in row],
            evaluations=[row for row in rows if any(key.startswith("eval_") for key in row)],
            events=[row for row in rows if "event" in row],
            unread=unread,
            is_going_on=is_going_on,
            written=written,
            scores=None if results is None else results.get("scores"),
        )

    @property
    def state(self) -> str:
        """Of GOING_ON and so on; ENDED is all that can be said of one killed, or without events."""
        if self.is_going_on:
            return GOING_ON
        last = self.events[-1]["event"] if self.events else None
        if last == FINISHED or (self.last("share") or 0.0) >= 1.0:
            return COMPLETE
        if last == STOPPED:
            return INTERRUPTED
        if self.training and self.training[-1]["loss"] is None:
            return BROKEN
        return ENDED

    @property
    def score(self) -> str | None:
        """What the training rows have beside the loss, by its name."""
        names = ("masked_accuracy", "accuracy", "mean_absolute_error")
        row = self.training[-1] if self.training else {}
        return next((name for name in names if name in row), None)

    @property
    def devices(self) -> str | None:
        """Those of the last start, as `8 x NVIDIA A100-SXM4-80GB`; None: not told."""
        told = [event["devices"] for event in self.events if "devices" in event]
        return str(told[-1]) if told else None

    def column(self, key: str) -> Float[np.ndarray, "R"]:
        """A value of each training row, NaN where it has none."""
        if key not in self._columns:
            self._columns[key] = numbers(self.training, key)
        return self._columns[key]

    @functools.cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return {}  # those asked for: each is in several charts, and a run may have 100,000 rows

    def last(self, key: str) -> float | None:
        """A value of the last training row that has it."""
        return next((row[key] for row in self.training[::-1] if is_number(row.get(key))), None)

    def left(self, key: str) -> float | None:
        """How much of `key` the run will still take at the pace of its recent rows."""
        values, shares = self.column(key), self.column("share")
        known = np.flatnonzero(np.isfinite(values) & np.isfinite(shares))
        if len(known) < 2:
            return None
        first, last = known[int(_RECENT * (len(known) - 1))], known[-1]
        gained = shares[last] - shares[first]
        if gained <= 0:
            return None
        left = max(1.0 - shares[last], 0.0)
        return float((values[last] - values[first]) / gained * left)

    def held_out_key(self, key: str) -> str | None:
        """The key of evaluations that stands for a training row's, by the first set's name."""
        wanted = f"eval_{key}"
        row = self.evaluations[-1] if self.evaluations else {}
        if wanted in row:
            return wanted
        return next((name for name in row if name.startswith(f"{wanted}_")), None)

    def at_steps(self, steps_K: np.ndarray, key: str) -> Float[np.ndarray, "K"]:
        """A value of the training rows, such as the seconds, at other steps than theirs."""
        values, steps = self.column(key), self.column("step")
        known = np.isfinite(values)
        if not known.any():
            return np.full(len(steps_K), np.nan)
        return np.interp(steps_K, steps[known], values[known])


def numbers(rows: list[Row], key: str) -> Float[np.ndarray, "R"]:
    """A value of each row, NaN where it has none."""
    return np.array([row[key] if is_number(row.get(key)) else np.nan for row in rows], float)


def is_number(value: Any) -> bool:
    """Whether something of a JSON file can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_results(folder: pathlib.Path) -> dict[str, Any] | None:
    """results.json; None where there is none.

    Raises:
      UserError: it cannot be read.
    """
    path = folder / workdir.RESULTS_FILE
    try:
        found = json.loads(path.read_text(errors="replace"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} cannot be read as a run's results ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} cannot be read as a run's results: it holds no object")
    return found


def _read_rows(path: pathlib.Path) -> tuple[list[Row], int, datetime.datetime | None]:
    """The rows, the number of lines that are none, and when the file was written to."""
    try:
        text = path.read_text(errors="replace")
        written = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
    except FileNotFoundError:
        return [], 0, None
    lines = text.split("\n")
    last = lines.pop()  # empty, or half written by a run that is going on or was killed
    rows = [_row(line) for line in lines if line.strip()]
    unread = rows.count(None)
    whole = _row(last)
    return [row for row in [*rows, whole] if row is not None], unread, written


def _row(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and is_number(row.get("step")) else None
