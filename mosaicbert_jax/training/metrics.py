"""Writes a run's metrics to metrics.jsonl, TensorBoard, Weights & Biases and the terminal."""

import contextlib
import datetime
import hashlib
import io
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from mosaicbert_jax import launch
from mosaicbert_jax.data.pipeline import Batch
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import write_atomically
from mosaicbert_jax.progress import columns, fitting
from mosaicbert_jax.training.checkpoints import Snapshot
from mosaicbert_jax.training.durations import Progress
from mosaicbert_jax.training.recovery import Diverged
from mosaicbert_jax.training.run import Run

# tensorboardX imports PyTorch where it is installed, which takes seconds and CUDA's libraries.
with launch.hidden("torch"):
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2, summary_pb2

METRICS_FILE = "metrics.jsonl"
_TENSORBOARD = "tensorboard"

# Kinds of events. A checkpoint is written while training continues, so a row can only say that
# saving has begun; a run that resumes from an earlier one drops the row.
STARTED, RESUMED, SAVING, STOPPED, FINISHED = "started", "resumed", "saving", "stopped", "finished"
EXTENDED = "extended"  # resumes with settings changed on purpose
ROLLED_BACK = "rolled back"  # its step is the one that the run went back to


class MetricsWriter:
    """Writes rows, each a dict with `step`.

    What a full disk does not take is said, and tried again with the next row.

    Args:
      workdir: the run's folder.
      step: at which the run resumes; later rows, of steps that are repeated, are dropped.
      say: takes a line for the terminal.
    """

    def __init__(
        self, workdir: pathlib.Path, config: ConfigDict, *, step: int, say: Callable[[str], None]
    ):
        self._workdir, self._say = workdir, say
        self._failing: set[str] = set()  # the outputs whose last write failed
        # A rollback to this very step comes again, as all that follows from its checkpoint.
        self._open(step, lambda row: row["step"] < step or row.get("event") != ROLLED_BACK)
        self._wandb = _start_wandb(workdir, config) if config.log.wandb_project else None

    def _open(self, step: int, is_kept: Callable[[dict[str, Any]], bool]) -> None:
        path = self._workdir / METRICS_FILE
        if path.exists():
            lines = path.read_text(errors="replace").splitlines()
            kept = [
                line for line in lines if is_row_until(line, step) and is_kept(json.loads(line))
            ]
            write_atomically(path, "".join(line + "\n" for line in kept))
        self.file = path.open("ab", buffering=0)
        self._unwritten = b""
        folder = self._workdir / _TENSORBOARD
        folder.mkdir(exist_ok=True)
        # Not a SummaryWriter: its thread ends at a write error, and its queue then blocks the run.
        self.tensorboard = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        began = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._tell_tensorboard(step=step + 1, session_log=began)  # what came after is void

    def _close(self) -> None:
        with self._failure_told(METRICS_FILE):
            self._write_unwritten()
            os.fsync(self.file.fileno())
        if self._unwritten:
            lost = self._unwritten.count(b"\n")
            self._say(f"The last {lost} rows of {self._workdir / METRICS_FILE} are lost.")
        self.file.close()
        with self._failure_told(_TENSORBOARD):
            self.tensorboard.close()

    def rewind(self, step: int) -> None:
        """Drops the rows past `step`, to which the run has gone back."""
        self._close()
        self._open(step, lambda row: True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        if self._wandb:
            self._wandb.finish()

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row everywhere."""
        # JSON has no NaN or infinity; a reader gets null, which no parser chokes on.
        safe = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row.items()
        }
        self._add_line(json.dumps(safe))
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        values = [summary_pb2.Summary.Value(tag=k, simple_value=v) for k, v in numbers.items()]
        self._tell_tensorboard(step=row["step"], summary=summary_pb2.Summary(value=values))
        if self._wandb:
            self._wandb.log(numbers, step=row["step"])

    def event(self, step: int, kind: str, **details: str | int) -> None:
        """Adds what has happened after `step`, with the time, to metrics.jsonl only."""
        now = datetime.datetime.now(datetime.UTC)
        row = {"step": step, "event": kind, "time": now.strftime("%Y-%m-%dT%H:%M:%SZ"), **details}
        self._add_line(json.dumps(row))

    def _add_line(self, line: str) -> None:
        self._unwritten += line.encode() + b"\n"
        with self._failure_told(METRICS_FILE):
            self._write_unwritten()

    def _write_unwritten(self) -> None:
        while self._unwritten:  # a nearly full disk may take part of it
            written = self.file.write(self._unwritten)
            self._unwritten = self._unwritten[written:]

    def _tell_tensorboard(self, **content: Any) -> None:
        with self._failure_told(_TENSORBOARD):
            self.tensorboard.write_event(event_pb2.Event(wall_time=time.time(), **content))
            self.tensorboard.flush()

    @contextlib.contextmanager
    def _failure_told(self, name: str) -> Iterator[None]:
        """Reports the first of several failed writes in a row, and continues."""
        try:
            yield
            self._failing.discard(name)
        except OSError as error:
            if name not in self._failing:
                self._failing.add(name)
                self._say(
                    f"{self._workdir / name} cannot be written ({error.strerror}); it is tried "
                    "again with each row."
                )


def is_row_until(line: str, step: int) -> bool:
    """Whether a line is a whole row of a step that counts; a killed run may leave half a line."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def _start_wandb(workdir: pathlib.Path, config: ConfigDict):
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "log.wandb_project is set, but wandb is not installed: `pip install wandb`"
        ) from error
    return wandb.init(
        project=config.log.wandb_project,
        dir=workdir,
        name=workdir.absolute().name,
        # One run of theirs for one of ours, however often it is restarted.
        id=hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16],
        resume="allow",
        config=config.to_dict(),
    )


_BAR_FRAME = "100.0% 99:59:59 < 99:59:59  "  # what stands before the parts, at its longest


class ProgressBar:
    """The share of the run that is completed, with loss, speed and ETA.

    A bar on a terminal; elsewhere, as in a log file, a line every `LOG_SECONDS`.
    """

    LOG_SECONDS = 15.0

    def __init__(self, share: float, *, show: bool):
        self._share = share
        self._show = show
        self._is_terminal = sys.stderr.isatty()
        self._last_line = time.monotonic()
        self._bar: tqdm | None = None  # from the first step on, so that its ETA is of steps

    def update(self, share: float, row: dict[str, float], score: str) -> None:
        """Moves on to `share` and shows `row`'s step, loss, score (by its name) and speed."""
        if not self._show:
            return
        if self._bar is None:
            self._bar = tqdm(
                total=1.0,
                initial=self._share,
                bar_format="{percentage:5.1f}%",  # until there is more to show
                mininterval=0.5,
                file=sys.stderr if self._is_terminal else io.StringIO(),
            )
        parts = [
            f"step {row['step']:,}",
            f"loss {row['loss']:.3f}",
            *([f"${row['dollars']:.2f}"] if "dollars" in row else []),
            f"{row['tokens_per_second']:,.0f} tokens/s",
            f"{score.replace('_', ' ')} {row[score]:.3f}",
        ]
        text = "  ".join(parts)
        # What is left of the line is the bar's.
        shown = fitting(parts, columns() - len(_BAR_FRAME))
        bar = min(30, columns() - len(_BAR_FRAME) - len(shown) - 3)
        drawn = f" |{{bar:{bar}}}|" if bar >= 5 else ""
        self._bar.bar_format = (
            "{percentage:5.1f}%" + drawn + " {elapsed} < {remaining}  " + shown.replace("{", "{{")
        )
        self._bar.update(min(share, 1.0) - self._bar.n)
        if not self._is_terminal and time.monotonic() - self._last_line >= self.LOG_SECONDS:
            self._last_line = time.monotonic()
            done = self._bar.format_dict
            left = done["elapsed"] * max(0.0, 1 - share) / max(share - self._share, 1e-9)
            print(f"{min(share, 1.0):6.1%}  {text}  {tqdm.format_interval(left)} left", flush=True)

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._show and self._bar is None:
            print(text, flush=True)
        elif self._show:
            with tqdm.external_write_mode(file=sys.stdout):
                print(text, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


class Reporter:
    """Reads the metrics of step n - 1 when step n has been dispatched, so no device waits for it.

    Attributes:
      health: after the last step that was reported.

    Args:
      writer: of the process that writes.
      start: from where the run resumes.
      peak: FLOP/s of all devices together, the denominator of MFU.
    """

    def __init__(
        self,
        run: Run,
        writer: MetricsWriter | None,
        bar: ProgressBar,
        start: Snapshot,
        peak: float,
    ):
        self.run = run
        self._writer = writer
        self._bar = bar
        self._pending: tuple[Progress, Batch, float, dict[str, jax.Array]] | None = None
        self._overflowed = 0
        self._parameters = run.parameters
        self.health = start.health
        self._row_progress, self._row_time, self._row_slots = start.progress, time.monotonic(), 0
        self._row_waited = 0.0
        self._peak = peak
        self._token_flops = run.flops_per_token

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time within as waited for data in its row."""
        begun = time.monotonic()
        yield
        self._row_waited += time.monotonic() - begun

    def dispatched(
        self, progress: Progress, batch: Batch, learning_rate: float, metrics: dict[str, jax.Array]
    ) -> None:
        """Takes over the metrics of a step that has been dispatched, and reports the one before."""
        self.flush()
        self._pending = progress, batch, learning_rate, metrics

    def exclude(self, seconds: float) -> None:
        """Keeps time that was not spent training, as in an evaluation, out of the row's speed."""
        self._row_time += seconds

    def event(self, progress: Progress, kind: str, **details: str | int) -> None:
        """Writes what has happened at this point of the run; see `MetricsWriter.event`."""
        if self._writer is not None:
            self._writer.event(progress.step, kind, **details)

    def flush(self) -> None:
        """Reports the last step, waiting for it.

        Raises:
          Diverged: training cannot continue from its loss.
        """
        if self._pending is None:
            return
        progress, batch, learning_rate, on_device = self._pending
        self._pending = None
        metrics = {name: float(value) for name, value in jax.device_get(on_device).items()}
        run = self.run
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
        run, now = self.run, time.monotonic()
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
