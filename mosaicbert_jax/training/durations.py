"""Durations, progress and the clock.

Durations are written `70000ba`, `286720000sp`, `3ep`, `1.13h`, `20usd`.
"""

import dataclasses
import math
import re
import time
from typing import Any, Self

import jax

from mosaicbert_jax import hosts
from mosaicbert_jax.errors import UserError

UNITS = {
    "ba": "steps",
    "sp": "sequences",
    "tok": "real tokens",
    "ep": "epochs",
    "s": "seconds",
    "m": "minutes",
    "h": "hours",
    "usd": "dollars",
}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a run has completed.

    Attributes:
      step: optimizer steps.
      sequences, tokens: of all hosts, real ones: padding is not counted.
      seconds: since the first step, over all restarts; compilation is not in it, evaluations are.
      dollars: what the devices cost from the first batch on, compilation included, at the price of
        each restart; 0 where no price is set.
    """

    step: int = 0
    sequences: int = 0
    tokens: int = 0
    seconds: float = 0.0
    dollars: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """A JSON record."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """From `to_dict`'s record."""
        return cls(**record)


@dataclasses.dataclass(frozen=True)
class Duration:
    """An amount of something that a run uses up, such as steps or dollars.

    Attributes:
      amount: above 0.
      unit: ba, sp, tok, ep, s, m, h or usd.
    """

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str, *, key: str) -> Self:
        """Reads `100ba`, `1.13h`, `30e9tok`; `key` names the setting in the error.

        Raises:
          UserError: for anything else.
        """
        match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)([a-z]+)", str(text).replace("_", ""))
        amount = None
        if match and match[2] in UNITS:
            try:
                amount = float(match[1])
            except ValueError:
                amount = None
        if not amount or not math.isfinite(amount):
            units = ", ".join(f"{unit} ({name})" for unit, name in UNITS.items())
            steps = f"; did you mean {text}ba?" if re.fullmatch(r"[1-9]\d*", str(text)) else ""
            raise UserError(
                f"{key}={text!r} is not a duration: a number above 0 and one of {units}{steps}"
            )
        return cls(amount, match[2])

    @property
    def is_time(self) -> bool:
        """Whether a clock decides it; two runs may then differ."""
        return self.unit in _SECONDS or self.unit == "usd"

    def count(self, progress: Progress, sequences_per_epoch: int) -> float:
        """How many of this duration `progress` amounts to: 1.0 when it has just been used up."""
        done = {
            "ba": progress.step,
            "sp": progress.sequences,
            "tok": progress.tokens,
            "ep": progress.sequences / sequences_per_epoch,
            "usd": progress.dollars,
        }.get(self.unit)
        if done is None:
            done = progress.seconds / _SECONDS[self.unit]
        return done / self.amount

    def passed(self, before: Progress, after: Progress, sequences_per_epoch: int) -> bool:
        """Whether a multiple of this duration lies between the two: something is due."""
        return int(self.count(after, sequences_per_epoch)) > int(
            self.count(before, sequences_per_epoch)
        )


class Clock:
    """The time and the money that a run has taken.

    If a duration is decided by the clock, several processes take the reading of the first one, and
    wait for each other at each reading.

    Args:
      progress: at which the run starts or resumes.
      durations: by which the run decides what to do.
      price_per_gpu_hour: dollars; None counts none.
    """

    def __init__(
        self,
        progress: Progress,
        durations: tuple[Duration, ...],
        price_per_gpu_hour: float | None = None,
    ):
        self._decides = any(duration.is_time for duration in durations)
        self._begun = self._started = time.monotonic()
        self._before = progress
        self._dollars_a_second = (price_per_gpu_hour or 0.0) * jax.device_count() / 3600

    def exclude(self, seconds: float) -> None:
        """Excludes time from the run's seconds, as for compiling. It is still paid for."""
        self._started += seconds

    def read(self) -> tuple[float, float]:
        """The run's seconds and dollars so far, over all restarts."""
        now = time.monotonic()
        seconds = self._before.seconds + now - self._started
        dollars = self._before.dollars + (now - self._begun) * self._dollars_a_second
        if self._decides:
            seconds, dollars = hosts.agreed(seconds, dollars)
        return seconds, dollars
