"""The learning rate over a run."""

import dataclasses
import math
from typing import Self

from ml_collections import ConfigDict

# How much of the way from the peak down the rate has gone, by the share of the decay that is done.
FORMS = {
    "linear": lambda done: done,
    "cosine": lambda done: (1.0 - math.cos(math.pi * done)) / 2,
    "1-sqrt": math.sqrt,
}
SCHEDULES = ("linear", "cosine", "wsd", "constant", "decay")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A linear warmup to the peak, a stable phase at the peak, and a decay.

    Shares are of the run: of its steps, tokens, seconds or dollars, whatever its duration counts.

    Attributes:
      peak: the highest learning rate.
      warmup: the share in which the rate rises from 0 to the peak.
      decay_from: the share at which the rate begins to fall; infinite: it never does.
      form: of the decay, a name of FORMS.
      final_fraction: of the peak, reached at share 1.
    """

    peak: float
    warmup: float
    decay_from: float
    form: str
    final_fraction: float

    @classmethod
    def of(cls, settings: ConfigDict) -> Self:
        """From the group `optimizer` of a config.

        "wsd" (warmup, stable, decay) is of Hu et al., 2024, arXiv:2404.06395, and the form "1-sqrt"
        of Hägele et al., 2024, arXiv:2405.18392. "decay" is the end of a wsd schedule alone, for a
        run that starts from a checkpoint of another run's stable phase.
        """
        name, warmup = settings.schedule, settings.warmup
        decay_from, form = {
            "linear": (warmup, "linear"),
            "cosine": (warmup, "cosine"),
            "wsd": (1.0 - settings.decay, settings.decay_form),
            "constant": (math.inf, "linear"),
            "decay": (0.0, settings.decay_form),
        }[name]
        warmup = 0.0 if name == "decay" else warmup
        return cls(settings.learning_rate, warmup, decay_from, form, settings.final_fraction)

    def rate(self, share: float) -> float:
        """The learning rate of a step.

        Args:
          share: of the run completed before this step, in [0, 1]; the first step has 0.
        """
        if share < self.warmup:
            return self.peak * share / self.warmup
        if share <= self.decay_from:
            return self.peak
        done = min((share - self.decay_from) / (1.0 - self.decay_from), 1.0)
        return self.peak * (1.0 - (1.0 - self.final_fraction) * FORMS[self.form](done))

    def is_stable(self, share: float) -> bool:
        """Whether a decay may start there: after the warmup, and before the rate falls."""
        return self.warmup <= share <= self.decay_from
