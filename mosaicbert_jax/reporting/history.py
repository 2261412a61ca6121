"""Reads a run's folder, also while the run is training."""

import dataclasses
import datetime
import enum
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

_RECENT = 0.5  # of the rows: those that the remaining time is estimated from

Row = dict[str, Any]


class State(enum.StrEnum):
    """Whether a run is training, and how it ended otherwise."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    NOT_FINITE = "failed: the loss is not finite"
    NOT_RUNNING = "not running"  # killed, or its rows have no events


@dataclasses.dataclass(frozen=True)
class History:
    """What a run's folder holds.

    Attributes:
      name: unique in a page.
      record: config.json.
      training, evaluations, events: rows of metrics.jsonl, see README.md.
      unread: invalid lines of metrics.jsonl, without a half-written last one.
      is_running: whether a process trains there.
      written: when metrics.jsonl was last written; None if there is none.
      scores: of results.json, by name; None if there is none.
    """

    name: str
    record: dict[str, Any]
    training: list[Row]
    evaluations: list[Row]
    events: list[Row]
    unread: int
    is_running: bool
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
            raise UserError(f"{folder} holds a converted model, not a run")
        train = record["config"].get("train")
        if not isinstance(train, dict) or not isinstance(train.get("duration"), str):
            raise UserError(
                f"{folder / workdir.CONFIG_FILE} has no train.duration, so it is not a run's record"
            )
        # Before the rows: if the run ends in between, its last row says so.
        is_running = workdir.is_locked(folder)
        rows, unread, written = _read_rows(folder / METRICS_FILE)
        results = read_json(folder / workdir.RESULTS_FILE)
        return cls(
            name=name,
            record=record,
            training=[row for row in rows if "loss" in row],
            evaluations=[row for row in rows if any(key.startswith("eval_") for key in row)],
            events=[row for row in rows if "event" in row],
            unread=unread,
            is_running=is_running,
            written=written,
            scores=None if results is None else results.get("scores"),
        )

    @property
    def state(self) -> State:
        """From the lock, the events and the last rows."""
        if self.is_running:
            return State.RUNNING
        last = self.events[-1]["event"] if self.events else None
        if last == FINISHED or (self.last("share") or 0.0) >= 1.0:
            return State.FINISHED
        if last == STOPPED:
            return State.STOPPED
        if self.training and self.training[-1]["loss"] is None:
            return State.NOT_FINITE
        return State.NOT_RUNNING

    @property
    def score(self) -> str | None:
        """The name of the score that the training rows have beside the loss."""
        names = ("masked_accuracy", "accuracy", "mean_absolute_error")
        row = self.training[-1] if self.training else {}
        return next((name for name in names if name in row), None)

    @property
    def devices(self) -> str | None:
        """Those of the last start, as `8 x NVIDIA A100-SXM4-80GB`; None if not recorded."""
        told = [event["devices"] for event in self.events if "devices" in event]
        return str(told[-1]) if told else None

    def column(self, key: str) -> Float[np.ndarray, "R"]:
        """A value of each training row, NaN where there is none."""
        if key not in self._columns:
            self._columns[key] = numbers(self.training, key)
        return self._columns[key]

    @functools.cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return {}  # a run may have 100,000 rows, and each column is used by several charts

    def last(self, key: str) -> float | None:
        """A value of the last training row that has it."""
        return next((row[key] for row in self.training[::-1] if is_number(row.get(key))), None)

    def left(self, key: str) -> float | None:
        """How much more of `key` the run needs, at the pace of its recent rows."""
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
        """The key of the evaluations, of the first set if several, for one of the training rows."""
        wanted = f"eval_{key}"
        row = self.evaluations[-1] if self.evaluations else {}
        if wanted in row:
            return wanted
        return next((name for name in row if name.startswith(f"{wanted}_")), None)

    def at_steps(self, steps_K: np.ndarray, key: str) -> Float[np.ndarray, "K"]:
        """A value of the training rows, such as the seconds, interpolated at other steps."""
        values, steps = self.column(key), self.column("step")
        known = np.isfinite(values)
        if not known.any():
            return np.full(len(steps_K), np.nan)
        return np.interp(steps_K, steps[known], values[known])


def numbers(rows: list[Row], key: str) -> Float[np.ndarray, "R"]:
    """A value of each row, NaN where there is none."""
    return np.array([row[key] if is_number(row.get(key)) else np.nan for row in rows], float)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_json(path: pathlib.Path) -> dict[str, Any] | None:
    """The object in a file such as results.json; None if there is no file.

    Raises:
      UserError: it cannot be read.
    """
    try:
        found = json.loads(path.read_text(errors="replace"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} cannot be read: it holds no JSON object")
    return found


def _read_rows(path: pathlib.Path) -> tuple[list[Row], int, datetime.datetime | None]:
    """The rows, the number of invalid lines, and when the file was last written."""
    try:
        text = path.read_text(errors="replace")
        written = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
    except FileNotFoundError:
        return [], 0, None
    lines = text.split("\n")
    last = lines.pop()  # empty, or half written by a run that is training or was killed
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
