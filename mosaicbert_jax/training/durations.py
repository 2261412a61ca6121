"""How long a run is, and how far it has come: `70000ba`, `286720000sp`, `3ep`, `1.13h`, `20usd`."""

import dataclasses
import math
import re
from typing import Any, Self

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
    """A number of something that a run uses up.

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
            raise UserError(
                f"{key}={text!r} is not a duration: a number above 0 and one of {units}"
            )
        return cls(amount, match[2])

    @property
    def is_time(self) -> bool:
        """Whether a clock decides it, so that two runs need not be alike bit for bit."""
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
