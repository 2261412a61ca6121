"""Checkpoints: whole or not there, written while training goes on."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx

from mosaicbert_jax.data.pipeline import Position
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.modeling.heads import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from mosaicbert_jax.training import workdir as workdirs
from mosaicbert_jax.training.durations import Progress
from mosaicbert_jax.training.step import TrainState

logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax reports every file that it opens


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a run needs to go on."""

    state: TrainState
    progress: Progress
    position: Position


class Checkpoints:
    """The checkpoints of one run: model, optimizer, data position, progress and config.

    Each is a folder that Orbax renames into place when it is complete, so that a run killed at
    any moment finds the last whole one. Use as a context manager: leaving it waits for the last
    save.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int):
        self._manager = ocp.CheckpointManager(
            (workdir / workdirs.CHECKPOINTS).absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(
        self, state: TrainState, progress: Progress, position: Position, record: dict[str, Any]
    ) -> None:
        """Starts saving; returns when the state may be donated to the next step."""
        if jax.default_backend() == "cpu":
            # Elsewhere Orbax has its own copy on the host when save returns. On a CPU that copy
            # is a view of the very buffers that the next step overwrites.
            state = jax.block_until_ready(jax.tree.map(jnp.copy, state))
        self._manager.save(
            progress.step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave(state.optimizer_state),
                progress=ocp.args.JsonSave(
                    {"progress": progress.to_dict(), "position": position.to_dict()}
                ),
                config=ocp.args.JsonSave(record),
            ),
        )

    def restore(self, abstract: TrainState) -> Restored:
        """The newest checkpoint, laid out as `abstract` (shapes, dtypes, shardings) says."""
        step = self.latest_step
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
        return Restored(
            TrainState(found.model, found.optimizer, completed),
            Progress.from_dict(found.progress["progress"]),
            Position.from_dict(found.progress["position"]),
        )


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


def _checkpoint(workdir: pathlib.Path, step: int | None) -> pathlib.Path:
    """The folder of the last checkpoint, or of the one at `step`."""
    folder = workdir / workdirs.CHECKPOINTS
    steps = ocp.utils.checkpoint_steps(folder.absolute()) if folder.is_dir() else []
    if not steps:
        raise UserError(f"{workdir} has no checkpoint yet")
    step = max(steps) if step is None else step
    if step not in steps:
        raise UserError(f"{workdir} has no checkpoint of step {step}; it has {sorted(steps)}")
    return (folder / str(step)).absolute()


def restore_params(workdir: pathlib.Path, abstract: Any, step: int | None = None) -> Any:
    """The parameters alone, of the last checkpoint or of the one at `step`.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    folder = _checkpoint(workdir, step)
    with _damage_explained(folder), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder / "model", abstract)


def restore_progress(workdir: pathlib.Path, step: int | None = None) -> Progress:
    """What the run had completed at its last checkpoint, or at the one of `step`; raises alike."""
    folder = _checkpoint(workdir, step)
    with _damage_explained(folder), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return Progress.from_dict(checkpointer.restore(folder / "progress")["progress"])


def save_params(workdir: pathlib.Path, model: BertForMaskedLM) -> None:
    """Writes parameters that no run here trained, as the checkpoint of step 0."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    manager = ocp.CheckpointManager((workdir / workdirs.CHECKPOINTS).absolute())
    with contextlib.closing(manager):
        manager.save(0, args=ocp.args.Composite(model=ocp.args.StandardSave(params)))
        manager.wait_until_finished()


def abstract_params(config: BertConfig, sharding: jax.sharding.Sharding) -> Any:
    """Shapes of a BertForMaskedLM's parameters as a tree of ShapeDtypeStruct."""
    return abstract_of(lambda: BertForMaskedLM(config, rngs=nnx.Rngs(0)), sharding)


def abstract_of(build: Callable[[], nnx.Module], sharding: jax.sharding.Sharding) -> Any:
    """Shapes of the parameters of what `build` returns, as a tree of ShapeDtypeStruct."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        nnx.to_pure_dict(nnx.state(nnx.eval_shape(build), nnx.Param)),
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

    def build():
        return build_model(record, 0)

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = restore_params(workdir, abstract_of(build, sharding), step)
    graph, _ = nnx.split(nnx.eval_shape(build))
    return nnx.merge(graph, params)
