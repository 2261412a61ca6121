"""The time and the money that a run has taken."""

import time

import jax

from mosaicbert_jax.training import hosts
from mosaicbert_jax.training.durations import Duration, Progress
from mosaicbert_jax.training.run import Run


class Clock:
    """Counts on from `progress`, where a run begins or goes on.

    On several processes, whose clocks differ, all go by the first one's if anything is decided by
    it; they then wait for each other at each reading.

    Args:
      durations: by which the run decides what to do.
    """

    def __init__(self, run: Run, progress: Progress, durations: tuple[Duration, ...]):
        self._decides = any(duration.is_time for duration in durations)
        self._begun = self._started = time.monotonic()
        self._before = progress
        price = run.config.train.price_per_gpu_hour or 0.0
        self._dollars_a_second = price * jax.device_count() / 3600

    def leave_out(self, seconds: float) -> None:
        """Time that is none of the run's seconds, as for compiling. It is paid for all the same."""
        self._started += seconds

    def read(self) -> tuple[float, float]:
        """The run's seconds and dollars so far, over all restarts."""
        now = time.monotonic()
        seconds = self._before.seconds + now - self._started
        dollars = self._before.dollars + (now - self._begun) * self._dollars_a_second
        return hosts.agreed(seconds, dollars) if self._decides else (seconds, dollars)
