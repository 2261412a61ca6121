"""The checkpoints of a run in progress, written atomically while training continues."""

import contextlib
import dataclasses
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    LatestN,
    PreservationPolicy,
)

from mosaicbert_jax import hosts, launch
from mosaicbert_jax.data.pipeline import Position
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.storage.checkpoint_files import (
    AVERAGE,
    STABLE,
    damage,
    damage_explained,
    manager_of,
    steps_of,
    unfinished_in,
)
from mosaicbert_jax.storage.workdir import CHECKPOINTS, DAMAGED
from mosaicbert_jax.training.durations import Progress
from mosaicbert_jax.training.recovery import Health
from mosaicbert_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A run at one step: what it saves and resumes from.

    Attributes:
      due: whether the run would have saved here without having been asked to stop. Rollbacks go
        back to such checkpoints alone, so that it makes no difference where a run was stopped.
      stable: whether a decay of the learning rate may start here; see `Schedule.is_stable`.
    """

    state: TrainState
    progress: Progress
    position: Position
    health: Health
    due: bool = True
    stable: bool = False


class Checkpoints:
    """The checkpoints of one run: model, optimizer, data position, progress and config.

    Each is a folder that Orbax renames into place when it is complete, with the digests of its
    files in it, so that a run killed at any moment finds the last whole one; older ones are deleted
    only then. Use as a context manager: leaving it waits for the last save.

    Args:
      workdir: the run's; see `set_damaged_aside`.
      keep: how many.
      keep_stable: how many of those from which a decay may start, besides.
      say: takes a line for the terminal.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        keep: int,
        keep_stable: int = 0,
        say: Callable[[str], None] = print,
    ):
        self._last_due: int | None = None
        self._stable: list[int] = []  # steps
        policies = (
            LatestN(keep),
            _Steps(lambda: [self._last_due]),
            _Steps(lambda: self._stable[-keep_stable:] if keep_stable else []),
        )
        self._manager = manager_of(workdir, preservation_policy=AnyPreservationPolicy(policies))
        self._quiet = launch.quiet_closed_loops()
        self._say = say
        self._saving: int | None = None  # the step whose save has begun and may not have ended
        self._failed: str | None = None  # what went wrong with the last one

    def __enter__(self) -> Self:
        self._quiet.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._wait()
            self._manager.close()
        finally:
            self._quiet.__exit__(None, None, None)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; waits for one that is being written."""
        self._wait()
        return self._manager.latest_step()

    def save(self, point: Snapshot, record: dict[str, Any]) -> None:
        """Starts saving; returns when the state may be donated to the next step.

        An error, such as a full disk, is reported, and the next save tries again.
        """
        self._wait()
        state, progress = point.state, point.progress
        if jax.default_backend() == "cpu":
            # Elsewhere Orbax has its own copy on the host when save returns. On a CPU that copy
            # is a view of the very buffers that the next step overwrites.
            state = jax.block_until_ready(jax.tree.map(jnp.copy, state))
        self._saving = progress.step
        before = self._last_due, self._stable
        if point.due:  # before what saving deletes is decided
            self._last_due = progress.step
        if point.due and point.stable:
            self._stable = [*self._stable, progress.step]
        average = {}
        if state.average is not None:
            average[AVERAGE] = ocp.args.StandardSave(state.average)
        with self._failure_told():
            self._manager.save(
                progress.step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(state.params),
                    optimizer=ocp.args.StandardSave(state.optimizer_state),
                    progress=ocp.args.JsonSave(
                        {
                            "progress": progress.to_dict(),
                            "position": point.position.to_dict(),
                            "health": point.health.to_dict(),
                            "last_due": self._last_due,
                            STABLE: self._stable,
                        }
                    ),
                    config=ocp.args.JsonSave(record),
                    **average,
                ),
            )
        if self._saving is None:  # it has failed already
            self._last_due, self._stable = before

    def wait(self) -> None:
        """Until all that has been saved is whole.

        Raises:
          UserError: the last save failed.
        """
        self._wait()
        if self._failed:
            raise UserError(f"{self._failed}; the same command repeats the steps since then")

    def _wait(self) -> None:
        """Until the save that has begun is whole or has failed."""
        if self._saving is not None:
            with self._failure_told():
                self._manager.wait_until_finished()
                self._saving, self._failed = None, None

    @contextlib.contextmanager
    def _failure_told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # it raises many kinds: of files, of TensorStore, of its own
            last = self._manager.latest_step()
            kept = (
                "none is there yet" if last is None else f"the last whole one is of step {last:,}"
            )
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            self._failed = (
                f"the checkpoint of step {self._saving:,} is not written ({reason}); {kept}"
            )
            self._saving = None
            self._say(self._failed)
            if hosts.is_first():  # the next one may need its space on the disk
                for unfinished in unfinished_in(self._manager.directory):
                    shutil.rmtree(unfinished, ignore_errors=True)

    def restore(self, abstract: TrainState) -> Snapshot | None:
        """The newest checkpoint, laid out as `abstract` (shapes, dtypes, shardings) says.

        None if there is none.
        """
        step = self.latest_step
        return None if step is None else self._restore(step, abstract)

    def go_back(self, abstract: TrainState) -> Snapshot | None:
        """The last checkpoint that was due; newer ones are deleted. None if none was due yet.

        If it is lost, damaged or was never written, the newest one that exists.
        """
        self._wait()
        due = self._last_due
        if due is not None and self._is_lost(due):
            self._say(f"The checkpoint of step {due:,} is lost; going back to the newest instead.")
            return self.restore(abstract)
        found = None if due is None else self._restore(due, abstract)
        for step in self._manager.all_steps():
            if step > (due or 0):
                self._manager.delete(step)
        return found

    def _is_lost(self, step: int) -> bool:
        """Whether a checkpoint is not there, or damaged, as the first process sees it."""
        is_there = step in self._manager.all_steps()
        folder = pathlib.Path(self._manager.directory) / str(step)
        is_lost = not is_there or (hosts.is_first() and damage(folder) is not None)
        return bool(hosts.agreed(float(is_lost))[0])

    def _restore(self, step: int, abstract: TrainState) -> Snapshot:
        average = {}
        if abstract.average is not None:
            average[AVERAGE] = ocp.args.StandardRestore(abstract.average)
        with damage_explained(pathlib.Path(self._manager.directory) / str(step)):
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardRestore(abstract.params),
                    optimizer=ocp.args.StandardRestore(abstract.optimizer_state),
                    progress=ocp.args.JsonRestore(),
                    **average,
                ),
            )
        completed = jax.device_put(jnp.asarray(step, jnp.int32), abstract.step.sharding)
        self._last_due = found.progress.get("last_due", step)  # an older one has none
        self._stable = list(found.progress.get(STABLE, ()))
        return Snapshot(
            TrainState(found.model, found.optimizer, completed, found.get(AVERAGE)),
            Progress.from_dict(found.progress["progress"]),
            Position.from_dict(found.progress["position"]),
            Health.from_dict(found.progress.get("health", {})),
            due=self._last_due == step,
            stable=step in self._stable,
        )


@dataclasses.dataclass(frozen=True)
class _Steps(PreservationPolicy):
    """Keeps the checkpoints of some steps, however many were saved since."""

    steps: Callable[[], Sequence[int | None]]

    def should_preserve(self, checkpoints, *, context):
        return [info.step in self.steps() for info in checkpoints]


def set_damaged_aside(workdir: pathlib.Path, say: Callable[[str], None]) -> None:
    """Moves checkpoints newer than the last whole one to DAMAGED, so that a run resumes from that.

    Args:
      say: takes a line for each.

    Raises:
      UserError: there are checkpoints and none is whole; nothing is moved then.
    """
    folder = workdir / CHECKPOINTS
    reasons: dict[int, str] = {}
    for step in sorted(steps_of(folder), reverse=True):
        reason = damage(folder / str(step))
        if reason is None:
            break
        reasons[step] = reason
    else:
        if reasons:
            told = "; ".join(f"of step {step}, {reason}" for step, reason in reasons.items())
            raise UserError(
                f"no checkpoint in {folder} is whole ({told}). Move the folder away to train "
                "from scratch, or put a copy of a whole one there"
            )
    for step, reason in reasons.items():
        aside = workdir / DAMAGED / f"{step}-{time.time_ns()}"
        aside.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(aside)
        say(f"The checkpoint of step {step:,} is damaged ({reason}); it is in {aside} now.")
