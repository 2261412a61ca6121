"""The checkpoints in a run's folder: sealed with digests when written, verified when read.

Orbax renames a checkpoint into place when it is complete. Before that, the digest of each of its
files is written into it, by which later damage is detected.
"""

import atexit
import contextlib
import functools
import glob
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp
from flax import nnx

from mosaicbert_jax import hosts
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import write_atomically
from mosaicbert_jax.storage.workdir import CHECKPOINTS

DIGESTS_FILE = "digests.json"
MODEL, AVERAGE, OPTIMIZER = "model", "average", "optimizer"  # a checkpoint's trees of arrays
STABLE = "stable"  # in its records: the steps saved so far from which a decay may start
_LATER = "_CHECKPOINT_METADATA"  # Orbax writes the time of the commit there later


def seal(folder: pathlib.Path) -> None:
    """Writes the digests of all files of a checkpoint that is about to be committed."""
    found = {str(path.relative_to(folder)): _digest(path) for path in _files(folder)}
    write_atomically(folder / DIGESTS_FILE, json.dumps(found, indent=0, sort_keys=True) + "\n")


def damage(folder: pathlib.Path, part: str = "") -> str | None:
    """The first problem found in a sealed folder; None if it is whole.

    Args:
      part: a folder in it; only its files are checked. By default all are.
    """
    path = folder / DIGESTS_FILE
    try:
        expected = json.loads(path.read_text())
    except FileNotFoundError:
        return f"{DIGESTS_FILE} is missing"
    except (OSError, ValueError):
        return f"{DIGESTS_FILE} cannot be read"
    if not isinstance(expected, dict):
        return f"{DIGESTS_FILE} cannot be read"
    for name, digest in expected.items():
        if part and not name.startswith(f"{part}/"):
            continue
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            return f"{DIGESTS_FILE} names files outside of the checkpoint"
        try:
            if _digest(folder / name) != digest:
                return f"{name} is not what was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    paths = folder.rglob("*")
    return sorted(path for path in paths if path.is_file() and path.name != _LATER)


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_for_orbax(folder: pathlib.Path) -> pathlib.Path:
    """A path to the folder without characters that are special to `glob`.

    Orbax finds its own files by glob patterns that begin with the folder's path, unescaped, and
    misses them if the path contains *, ? or [ (orbax-checkpoint 0.12).
    """
    folder = folder.absolute()
    return _link_to(folder) if glob.has_magic(str(folder)) else folder


@functools.cache
def _link_to(folder: pathlib.Path) -> pathlib.Path:
    """A symbolic link to a folder, which lasts as long as the process."""
    place = tempfile.TemporaryDirectory(prefix="mosaicbert-")
    atexit.register(place.cleanup)
    link = pathlib.Path(place.name) / "linked"
    link.symlink_to(folder)
    return link


def manager_of(workdir: pathlib.Path, **options: Any) -> ocp.CheckpointManager:
    """Orbax's, which seals each checkpoint before it renames it into place."""
    folder = (workdir / CHECKPOINTS).absolute()

    def seal_unfinished():
        if hosts.is_first():
            for unfinished in unfinished_in(folder):
                seal(unfinished)

    folder.mkdir(parents=True, exist_ok=True)
    return ocp.CheckpointManager(
        path_for_orbax(folder),
        options=ocp.CheckpointManagerOptions(
            async_options=ocp.AsyncOptions(post_finalization_callback=seal_unfinished),
            **options,
        ),
    )


def unfinished_in(folder: os.PathLike) -> list[pathlib.Path]:
    """The checkpoints that Orbax has not yet renamed into place."""
    return list(pathlib.Path(folder).glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"))


def steps_of(folder: pathlib.Path) -> list[int]:
    """The steps of the complete checkpoints in a folder."""
    return ocp.utils.checkpoint_steps(folder.absolute()) if folder.is_dir() else []


@contextlib.contextmanager
def damage_explained(folder: pathlib.Path) -> Iterator[None]:
    """Turns whatever a damaged checkpoint makes Orbax raise into a UserError."""
    try:
        yield
    except Exception as error:  # it raises many kinds: of JSON, of files, of its own
        raise UserError(
            f"the checkpoint {folder} cannot be read ({type(error).__name__}); if it is damaged, "
            "move it away to resume from the one before"
        ) from error


def _folder_of(workdir: pathlib.Path, step: int | None) -> pathlib.Path:
    """The folder of the last checkpoint, or of the one at `step`."""
    folder = workdir / CHECKPOINTS
    steps = steps_of(folder)
    if not steps:
        raise UserError(f"{workdir} has no checkpoint yet")
    step = max(steps) if step is None else step
    if step not in steps:
        raise UserError(f"{workdir} has no checkpoint of step {step}; it has {sorted(steps)}")
    return (folder / str(step)).absolute()


def _find(workdir: pathlib.Path, step: int | None, part: str) -> pathlib.Path:
    """The same, and its `part` is whole."""
    found = _folder_of(workdir, step)
    step, steps = int(found.name), steps_of(found.parent)
    reason = damage(found, part)
    if reason is not None:
        others = sorted(other for other in steps if other != step)
        instead = f"there are also those of {others}" if others else "there is no other"
        raise UserError(f"the checkpoint {found} is damaged: {reason}; {instead}")
    return found


def read_params(workdir: pathlib.Path, abstract: Any, step: int | None = None) -> Any:
    """The parameters alone, of the last checkpoint or of the one at `step`.

    Their moving average, if the run keeps one.

    Args:
      abstract: all parameters, as a tree of ShapeDtypeStruct with shardings.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    part = AVERAGE if (_folder_of(workdir, step) / AVERAGE).exists() else MODEL
    return read_part(workdir, part, abstract, step)


def read_part(workdir: pathlib.Path, part: str, abstract: Any, step: int | None = None) -> Any:
    """One of a checkpoint's trees of arrays: MODEL, AVERAGE or OPTIMIZER; see `read_params`."""
    folder = _find(workdir, step, part)
    with damage_explained(folder), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path_for_orbax(folder) / part, abstract)


def read_progress(workdir: pathlib.Path, step: int | None = None) -> dict[str, Any]:
    """What the run had completed at that checkpoint: step, sequences, tokens, seconds, dollars.

    Raises:
      UserError: as `read_params`.
    """
    return read_records(workdir, step)["progress"]


def read_records(workdir: pathlib.Path, step: int | None = None) -> dict[str, Any]:
    """What a checkpoint says beside its arrays: "progress", "position" of the data and others.

    Raises:
      UserError: as `read_params`.
    """
    folder = _find(workdir, step, "progress")
    with damage_explained(folder), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path_for_orbax(folder) / "progress")


def stable_steps(workdir: pathlib.Path) -> list[int]:
    """The steps of the checkpoints that are there and from which a decay may start, in order."""
    steps = steps_of(workdir / CHECKPOINTS)
    if not steps:
        return []
    stable = read_records(workdir).get(STABLE, ())
    return sorted(set(stable) & set(steps))


def write_params(workdir: pathlib.Path, model: nnx.Module) -> None:
    """Writes a converted model's parameters as the checkpoint of step 0."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    with contextlib.closing(manager_of(workdir)) as manager:
        manager.save(0, args=ocp.args.Composite(model=ocp.args.StandardSave(params)))
        manager.wait_until_finished()
