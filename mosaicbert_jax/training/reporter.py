"""Turns what the steps compute into rows and a progress bar, one step behind the device."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from mosaicbert_jax.data.pipeline import Batch
from mosaicbert_jax.training.checkpoints import Restored
from mosaicbert_jax.training.durations import Progress
from mosaicbert_jax.training.metrics import MetricsWriter, ProgressBar
from mosaicbert_jax.training.recovery import Diverged
from mosaicbert_jax.training.run import Run


class Reporter:
    """Reads the metrics of step n - 1 when step n has been dispatched, so no device waits for it.

    Attributes:
      health: after the last step that was reported.

    Args:
      writer: of the process that writes.
      start: from where the run goes on.
      peak: FLOP/s of all devices together, the denominator of MFU.
    """

    def __init__(
        self,
        run: Run,
        writer: MetricsWriter | None,
        bar: ProgressBar,
        start: Restored,
        peak: float,
    ):
        self._run = run
        self._writer = writer
        self._bar = bar
        self._pending: tuple[Progress, Batch, float, dict[str, jax.Array]] | None = None
        self._overflowed = 0
        self._parameters = run.parameters
        self.health = start.health
        self._row_progress, self._row_time, self._row_slots = start.progress, time.monotonic(), 0
        self._row_waited = 0.0
        self._peak = peak
        self._token_flops = run.token_flops

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; the time until each is there counts as waited for in its row."""
        batches = iter(batches)
        while True:
            begun = time.monotonic()
            batch = next(batches, None)
            self._row_waited += time.monotonic() - begun
            if batch is None:
                return
            yield batch

    def dispatched(
        self, progress: Progress, batch: Batch, learning_rate: float, metrics: dict[str, jax.Array]
    ) -> None:
        """Takes over the metrics of a step that has been dispatched, and reports the one before."""
        self.flush()
        self._pending = progress, batch, learning_rate, metrics

    def leave_out(self, seconds: float) -> None:
        """Keeps time that was not spent training, as in an evaluation, out of the row's speed."""
        self._row_time += seconds

    def event(self, progress: Progress, kind: str, **details: str | int) -> None:
        """Writes what has happened at this point of the run; see `MetricsWriter.event`."""
        if self._writer is not None:
            self._writer.event(progress.step, kind, **details)

    def flush(self) -> None:
        """Reports the last step, waiting for it.

        Raises:
          Diverged: training cannot go on from its loss.
        """
        if self._pending is None:
            return
        progress, batch, learning_rate, on_device = self._pending
        self._pending = None
        metrics = {name: float(value) for name, value in jax.device_get(on_device).items()}
        run = self._run
        self._row_slots += batch.slots
        self._overflowed += batch.overflowed or 0
        complaint = self.health.complaint(metrics, run.config.recovery)
        due = progress.step % run.config.log.every == 0 or progress.step == 1
        if due or complaint or run.share(progress) >= 1.0:
            self._write(progress, batch, learning_rate, metrics)
        if complaint:
            raise Diverged(complaint, progress, batch.position)
        self.health = self.health.after(metrics["loss"])

    def _write(
        self, progress: Progress, batch: Batch, learning_rate: float, metrics: dict[str, float]
    ) -> None:
        run, now = self._run, time.monotonic()
        seconds = max(now - self._row_time, 1e-9)
        tokens_per_second = (progress.tokens - self._row_progress.tokens) / seconds
        row: dict[str, Any] = {
            "step": progress.step,
            "samples": progress.sequences,
            "tokens": progress.tokens,
            "loss": metrics["loss"],
            run.objective.score: metrics[run.objective.score],
            "learning_rate": learning_rate,
            "tokens_per_second": tokens_per_second,
            "data_wait_fraction": self._row_waited / seconds,
            "mfu": self._token_flops * tokens_per_second / self._peak,
            "mfu_6n": 6 * self._parameters * self._row_slots / seconds / self._peak,
            "packing_efficiency": batch.tokens / batch.slots,
            "grad_norm": metrics["grad_norm"],
            "seconds": progress.seconds,
            "share": run.share(progress),
        }
        if run.config.train.price_per_gpu_hour is not None:
            row["dollars"] = progress.dollars
        if batch.overflowed is not None:
            row["overflowed_predictions"] = self._overflowed
        if self._writer is not None:
            self._writer.write(row)
        self._bar.update(run.share(progress), row, run.objective.score)
        self._row_progress, self._row_time, self._row_slots = progress, now, 0
        self._row_waited = 0.0
        self._overflowed = 0
