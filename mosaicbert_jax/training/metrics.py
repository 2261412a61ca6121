"""Where a run's numbers go: metrics.jsonl, TensorBoard, Weights & Biases, the terminal."""

import json
import math
import os
import pathlib
import sys
from typing import Any, Self

import tensorboardX
from ml_collections import ConfigDict
from tqdm import tqdm

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import write_atomically

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Writes rows, each a dict with `step`; only the first host has one.

    Args:
      workdir: the run's folder.
      step: at which the run goes on; rows past it, of steps that are done again, are dropped.
    """

    def __init__(self, workdir: pathlib.Path, config: ConfigDict, *, step: int):
        path = workdir / METRICS_FILE
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _is_row_until(line, step)]
            write_atomically(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", buffering=1)
        self._tensorboard = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=step + 1 if step else None
        )
        self._wandb = _start_wandb(workdir, config) if config.log.wandb_project else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row everywhere."""
        # JSON has no NaN or infinity; a reader gets null, which no parser chokes on.
        safe = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row.items()
        }
        self._file.write(json.dumps(safe) + "\n")
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        for key, value in numbers.items():
            self._tensorboard.add_scalar(key, value, row["step"])
        if self._wandb:
            self._wandb.log(numbers, step=row["step"])


def _is_row_until(line: str, step: int) -> bool:
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
        id=workdir.absolute().name,
        resume="allow",
        config=config.to_dict(),
    )


class ProgressBar:
    """The share of the run that is completed, with loss, speed and ETA."""

    def __init__(self, share: float, *, show: bool):
        self._share = share
        self._show = show
        self._bar: tqdm | None = None  # drawn from the first step on, so that its ETA is of steps

    def update(self, share: float, step: int, row: dict[str, float]) -> None:
        """Moves on to `share` and shows `row`'s loss, accuracy and speed."""
        if self._bar is None:
            self._bar = tqdm(
                total=1.0,
                initial=self._share,
                disable=not self._show,
                bar_format="{percentage:5.1f}% |{bar:30}| {elapsed} < {remaining} {postfix}",
                mininterval=0.5 if sys.stderr.isatty() else 15.0,
                ascii=not sys.stderr.isatty(),
                file=sys.stderr,
            )
        self._bar.set_postfix_str(
            f"step {step}  loss {row['loss']:.3f}  accuracy {row['masked_accuracy']:.3f}  "
            f"{row['tokens_per_second']:,.0f} tokens/s",
            refresh=False,
        )
        self._bar.update(min(share, 1.0) - self._bar.n)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._show and self._bar is None:
            print(text, flush=True)
        elif self._show:
            with tqdm.external_write_mode(file=sys.stdout):
                print(text, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
