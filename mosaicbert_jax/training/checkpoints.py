"""Checkpoints: whole or not there, written while training goes on."""

import contextlib
import dataclasses
import logging
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    LatestN,
    PreservationPolicy,
)

from mosaicbert_jax.data.pipeline import Position
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.modeling.heads import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from mosaicbert_jax.training import digests, hosts
from mosaicbert_jax.training import workdir as workdirs
from mosaicbert_jax.training.durations import Progress
from mosaicbert_jax.training.recovery import Health
from mosaicbert_jax.training.step import TrainState

DAMAGED = "damaged"  # in a workdir

# Orbax reports every file that it opens; and with a traceback the errors that it raises too.
logging.getLogger("absl").setLevel(logging.WARNING)
logging.getLogger("absl").addFilter(
    lambda record: not (record.exc_info and "orbax" in record.pathname)
)


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a run needs to go on.

    Attributes:
      due: whether the run would have saved here without having been asked to stop. Rollbacks go
        back to such checkpoints alone, so that it makes no difference where a run was stopped.
    """

    state: TrainState
    progress: Progress
    position: Position
    health: Health
    due: bool = True


class Checkpoints:
    """The checkpoints of one run: model, optimizer, data position, progress and config.

    Each is a folder that Orbax renames into place when it is complete, with the digests of its
    files in it, so that a run killed at any moment finds the last whole one; older ones are deleted
    only then. Use as a context manager: leaving it waits for the last save.

    Args:
      workdir: the run's; see `set_damaged_aside`.
      keep: how many.
      say: takes a line for the terminal.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int, say: Callable[[str], None] = print):
        self._last_due: int | None = None
        policies = (LatestN(keep), _LastDue(lambda: self._last_due))
        self._manager = _manager(workdir, preservation_policy=AnyPreservationPolicy(policies))
        self._say = say
        self._saving: int | None = None  # the step whose save has begun and may not have ended
        self._failed: str | None = None  # what went wrong with the last one

    def __enter__(self) -> Self:
        # After a write that failed TensorStore reports to an event loop of Orbax's that has ended,
        # with a traceback for each array. The failure itself is told; see `_failure_told`.
        told = self._told = sys.unraisablehook

        def tell(unraisable):
            if str(unraisable.exc_value) != "Event loop is closed":
                told(unraisable)

        sys.unraisablehook = tell
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._wait()
            self._manager.close()
        finally:
            sys.unraisablehook = self._told

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; waits for one that is being written."""
        self._wait()
        return self._manager.latest_step()

    def save(self, point: Restored, record: dict[str, Any]) -> None:
        """Starts saving; returns when the state may be donated to the next step.

        What goes wrong, as with a full disk, is said, and the next save tries again.
        """
        self._wait()
        state, progress = point.state, point.progress
        if jax.default_backend() == "cpu":
            # Elsewhere Orbax has its own copy on the host when save returns. On a CPU that copy
            # is a view of the very buffers that the next step overwrites.
            state = jax.block_until_ready(jax.tree.map(jnp.copy, state))
        self._saving = progress.step
        before = self._last_due
        if point.due:  # before what saving deletes is decided
            self._last_due = progress.step
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
                        }
                    ),
                    config=ocp.args.JsonSave(record),
                ),
            )
        if self._saving is None:  # it has failed already
            self._last_due = before

    def wait(self) -> None:
        """Until all that has been saved is whole.

        Raises:
          UserError: the last save failed.
        """
        self._wait()
        if self._failed:
            raise UserError(f"{self._failed}; the same command does the steps since then again")

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
            if hosts.is_first():  # what it takes of the disk may be what the next one needs
                for unfinished in _unfinished(self._manager.directory):
                    shutil.rmtree(unfinished, ignore_errors=True)

    def restore(self, abstract: TrainState) -> Restored | None:
        """The newest checkpoint, laid out as `abstract` (shapes, dtypes, shardings) says.

        None if there is none.
        """
        step = self.latest_step
        return None if step is None else self._restore(step, abstract)

    def go_back(self, abstract: TrainState) -> Restored | None:
        """The last checkpoint that was due, and newer ones deleted; None if none was due yet.

        If it is lost, damaged or was never written, the newest one there is.
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
        is_lost = not is_there or (hosts.is_first() and digests.damage(folder) is not None)
        return bool(hosts.agreed(float(is_lost))[0])

    def _restore(self, step: int, abstract: TrainState) -> Restored:
        with _damage_explained(pathlib.Path(self._manager.directory) / str(step)):
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardRestore(abstract.params),
                    optimizer=ocp.args.StandardRestore(abstract.optimizer_state),
                    progress=ocp.args.JsonRestore(),
                ),
            )
        completed = jax.device_put(jnp.asarray(step, jnp.int32), abstract.step.sharding)
        self._last_due = found.progress.get("last_due", step)  # one of before has none
        return Restored(
            TrainState(found.model, found.optimizer, completed),
            Progress.from_dict(found.progress["progress"]),
            Position.from_dict(found.progress["position"]),
            Health.from_dict(found.progress.get("health", {})),
            due=self._last_due == step,
        )


@dataclasses.dataclass(frozen=True)
class _LastDue(PreservationPolicy):
    """Keeps the last checkpoint that was due, however many were saved since."""

    step: Callable[[], int | None]

    def should_preserve(self, checkpoints, *, context):
        return [info.step == self.step() for info in checkpoints]


def _manager(workdir: pathlib.Path, **options: Any) -> ocp.CheckpointManager:
    """Orbax's, which seals each checkpoint before it renames it into place."""
    folder = (workdir / workdirs.CHECKPOINTS).absolute()

    def seal():
        if hosts.is_first():
            for unfinished in _unfinished(folder):
                digests.seal(unfinished)

    return ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(
            create=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=seal),
            **options,
        ),
    )


def _unfinished(folder: os.PathLike) -> list[pathlib.Path]:
    """The checkpoints that Orbax has not yet renamed into place."""
    return list(pathlib.Path(folder).glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"))


def set_damaged_aside(workdir: pathlib.Path, say: Callable[[str], None]) -> None:
    """Moves checkpoints newer than the last whole one to DAMAGED, so that a run goes on from that.

    Args:
      say: takes a line for each.

    Raises:
      UserError: there are checkpoints and none is whole; nothing is moved then.
    """
    folder = workdir / workdirs.CHECKPOINTS
    reasons: dict[int, str] = {}
    for step in sorted(_steps(folder), reverse=True):
        reason = digests.damage(folder / str(step))
        if reason is None:
            break
        reasons[step] = reason
    else:
        if reasons:
            told = "; ".join(f"of step {step}, {reason}" for step, reason in reasons.items())
            raise UserError(
                f"no checkpoint in {folder} is whole ({told}). Move the folder away to begin "
                "anew, or put a copy of a whole one there"
            )
    for step, reason in reasons.items():
        aside = workdir / DAMAGED / f"{step}-{time.time_ns()}"
        aside.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(aside)
        say(f"The checkpoint of step {step:,} is damaged ({reason}); it is in {aside} now.")


def _steps(folder: pathlib.Path) -> list[int]:
    return ocp.utils.checkpoint_steps(folder.absolute()) if folder.is_dir() else []


@contextlib.contextmanager
def _damage_explained(folder: pathlib.Path) -> Iterator[None]:
    """Turns whatever a damaged checkpoint makes Orbax raise into a UserError."""
    try:
        yield
    except Exception as error:  # it raises many kinds: of JSON, of files, of its own
        raise UserError(
            f"the checkpoint {folder} cannot be read ({type(error).__name__}); if it is damaged, "
            "move it away to go on from the one before"
        ) from error


def _checkpoint(workdir: pathlib.Path, step: int | None, part: str) -> pathlib.Path:
    """The folder of the last checkpoint, or of the one at `step`, whose `part` is whole."""
    folder = workdir / workdirs.CHECKPOINTS
    steps = _steps(folder)
    if not steps:
        raise UserError(f"{workdir} has no checkpoint yet")
    step = max(steps) if step is None else step
    if step not in steps:
        raise UserError(f"{workdir} has no checkpoint of step {step}; it has {sorted(steps)}")
    found = (folder / str(step)).absolute()
    reason = digests.damage(found, part)
    if reason is not None:
        others = sorted(other for other in steps if other != step)
        instead = f"there are also those of {others}" if others else "there is no other"
        raise UserError(f"the checkpoint {found} is damaged: {reason}; {instead}")
    return found


def restore_params(workdir: pathlib.Path, abstract: Any, step: int | None = None) -> Any:
    """The parameters alone, of the last checkpoint or of the one at `step`.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    folder = _checkpoint(workdir, step, "model")
    with _damage_explained(folder), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder / "model", abstract)


def restore_progress(workdir: pathlib.Path, step: int | None = None) -> Progress:
    """What the run had completed at its last checkpoint, or at the one of `step`; raises alike."""
    folder = _checkpoint(workdir, step, "progress")
    with _damage_explained(folder), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return Progress.from_dict(checkpointer.restore(folder / "progress")["progress"])


def save_params(workdir: pathlib.Path, model: BertForMaskedLM) -> None:
    """Writes parameters that no run here trained, as the checkpoint of step 0."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    with contextlib.closing(_manager(workdir)) as manager:
        manager.save(0, args=ocp.args.Composite(model=ocp.args.StandardSave(params)))
        manager.wait_until_finished()


def abstract_params(config: BertConfig, sharding: jax.sharding.Sharding) -> Any:
    """Shapes of a BertForMaskedLM's parameters as a tree of ShapeDtypeStruct."""
    model = nnx.eval_shape(lambda: BertForMaskedLM(config, rngs=nnx.Rngs(0)))
    return abstract_params_of(model, sharding)


def abstract_params_of(model: nnx.Module, sharding: jax.sharding.Sharding) -> Any:
    """Shapes of the parameters of a model, or of one from `nnx.eval_shape`, as such a tree."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        nnx.to_pure_dict(nnx.state(model, nnx.Param)),
    )


def build_model(record: dict[str, Any], seed: int | jax.Array) -> nnx.Module:
    """A model as the record of a run describes it, with random weights.

    Args:
      seed: an integer or a key.
    """
    config = BertConfig.from_fields(record["model"])
    classifier = record.get(workdirs.CLASSIFIER)
    if classifier is None:
        return BertForMaskedLM(config, rngs=nnx.Rngs(seed))
    outputs = len(classifier["labels"]) or 1  # one number, of a regression
    of_tokens = classifier["kind"] == "token_classification"
    build = BertForTokenClassification if of_tokens else BertForSequenceClassification
    return build(config, num_labels=outputs, rngs=nnx.Rngs(seed))


def load_model(workdir: pathlib.Path, step: int | None = None) -> nnx.Module:
    """The model of a run, from its last checkpoint or the one at `step`."""
    record = workdirs.read(workdir)
    model = nnx.eval_shape(lambda: build_model(record, 0))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = restore_params(workdir, abstract_params_of(model, sharding), step)
    return nnx.merge(nnx.split(model)[0], params)
