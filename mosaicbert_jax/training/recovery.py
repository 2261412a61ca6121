"""Detects a loss that has diverged, from what a run remembers of its losses.

A run whose loss or gradient is not finite, or whose loss lies far above what it has lately been,
rolls back to its last checkpoint and skips the data from there to the batch in question. Both
decisions follow from numbers that are alike in all processes and that checkpoints keep, so that a
run that is done again, or interrupted, decides alike.
"""

import dataclasses
import math
from typing import Any, Self

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mosaicbert_jax.data.pipeline import Position
from mosaicbert_jax.training.durations import Progress

_DECAY = 0.99  # of the running mean and variance
_FIRST = 100  # losses after which the spread is known well enough to judge by


def recovery_settings(*, max_rollbacks: int, spike: float) -> dict[str, Any]:
    """The group `recovery`."""
    return {
        "max_rollbacks": max_rollbacks,  # rollbacks before a run stops; 0 stops at once
        # Standard deviations above the running mean at which a loss is a spike; 0 for none.
        "spike": spike,
        # Seconds without a step after which the run writes what it was doing.
        "hang_seconds": placeholder(float),
        "exit_on_hang": False,  # exit with status 75 then, so that a scheduler restarts it
    }


@dataclasses.dataclass(frozen=True)
class Health:
    """What a run remembers in order to judge a loss, at one step.

    Attributes:
      losses: how many the spread has been taken from.
      mean, variance: of the losses, exponentially weighted.
      rollbacks: of the run so far.
    """

    losses: int = 0
    mean: float = 0.0
    variance: float = 0.0
    rollbacks: int = 0

    def to_dict(self) -> dict[str, Any]:
        """A JSON record."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """From `to_dict`'s record."""
        return cls(**record)

    def complaint(self, metrics: dict[str, float], recovery: ConfigDict) -> str | None:
        """What is wrong with a step's loss and gradient norm, if anything is."""
        bad = [name for name in ("loss", "grad_norm") if not math.isfinite(metrics[name])]
        if bad:
            return f"{' and '.join(bad)} not finite"
        bound = self.mean + recovery.spike * math.sqrt(self.variance)
        if recovery.spike and self.losses >= _FIRST and metrics["loss"] > bound:
            return (
                f"loss {metrics['loss']:.3f} is more than {recovery.spike:g} standard deviations "
                f"above the running mean, {self.mean:.3f} (recovery.spike)"
            )
        return None

    def after(self, loss: float) -> "Health":
        """With one more loss."""
        if not self.losses:
            return dataclasses.replace(self, losses=1, mean=loss)
        gap = loss - self.mean
        return dataclasses.replace(
            self,
            losses=self.losses + 1,
            mean=self.mean + (1 - _DECAY) * gap,
            # West (1979), "Updating mean and variance estimates", with exponential weights.
            variance=_DECAY * (self.variance + (1 - _DECAY) * gap * gap),
        )


class Diverged(Exception):  # noqa: N818  the run may continue
    """A step whose loss training cannot continue from.

    Attributes:
      progress: after that step; what it spent is spent.
      position: of the data after its batch.
    """

    def __init__(self, complaint: str, progress: Progress, position: Position):
        super().__init__(f"step {progress.step}: {complaint}")
        self.progress, self.position = progress, position
