"""An unfinished preparation: what is finished of it, and its folder.

Beside the output NAME there is `.NAME.partial` until the data set is whole:

    lock                  held by the process that works there; it goes with the process
    progress.json         `Finished`, rewritten whole after each pair of shards
    keys-00000.npy        the digests of the documents in these shards
    data/                 the finished shards; becomes NAME
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mosaicbert_jax.data.dataset import METADATA_FILE, ShardRecord, shard_paths
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import sync, try_lock, write_atomically
from mosaicbert_jax.text.sources import record_files

_PROGRESS_FILE = "progress.json"


@dataclasses.dataclass
class SplitProgress:
    """What one split has; see `SplitRecord`.

    Attributes:
      unknown_tokens: how many are [UNK].
    """

    documents: int = 0
    truncated_documents: int = 0
    unknown_tokens: int = 0
    shards: tuple[ShardRecord, ...] = ()

    @property
    def sequences(self) -> int:
        """Of all finished shards."""
        return sum(shard.sequences for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Of all finished shards."""
        return sum(shard.tokens for shard in self.shards)


@dataclasses.dataclass
class Finished:
    """What is finished, and where the rest begins: at block `block` of file `file`.

    Attributes:
      files: bytes and sha256 of the files before `file`.
      documents: that were read, by file.
      skipped: by kind, what could not be read.
      skipped_places: of the first of them.
      key_files: of digests that are written.
    """

    file: int = 0
    block: int = 0
    files: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    documents: list[int] = dataclasses.field(default_factory=list)
    splits: dict[str, SplitProgress] = dataclasses.field(
        default_factory=lambda: {"train": SplitProgress(), "validation": SplitProgress()}
    )
    duplicates: int = 0
    empty: int = 0
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    skipped_places: list[str] = dataclasses.field(default_factory=list)
    key_files: int = 0

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Finished":
        """From the record in progress.json."""
        splits = {
            name: SplitProgress(
                **{**split, "shards": tuple(ShardRecord(**shard) for shard in split["shards"])}
            )
            for name, split in record["splits"].items()
        }
        files = [(size, sha256) for size, sha256 in record["files"]]
        return cls(**{**record, "splits": splits, "files": files})


@dataclasses.dataclass(frozen=True)
class FileStamp:
    """What shows that a file, or folder of records, has changed, without reading it."""

    path: str
    bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> "FileStamp":
        """Of a file, or of a data set of tensorflow-datasets."""
        found = [part.stat() for part in (record_files(path) if path.is_dir() else [path])]
        return cls(
            str(path.absolute()),
            sum(status.st_size for status in found),
            max((status.st_mtime_ns for status in found), default=0),
        )


class Workspace:
    """The folder of an unfinished preparation. Make it with `workspace`.

    Attributes:
      data: the folder that becomes the output.
      progress: what is finished.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], stamps: Sequence[FileStamp]):
        self.folder = folder
        self.data = folder / "data"
        self.progress = Finished()
        self._identity = dict(identity)
        self._stamps = list(stamps)
        if (folder / _PROGRESS_FILE).is_file() and self.data.is_dir():
            self._go_on()
        else:
            self.discard()  # of data that became an output, which is gone
            shutil.rmtree(self.data, ignore_errors=True)
            self.data.mkdir()

    def save(self, keys: Sequence[np.ndarray] = ()) -> None:
        """Makes what was written since the last time part of what is finished."""
        if keys:
            with self._keys_path(self.progress.key_files).open("wb") as file:
                np.save(file, np.concatenate(keys))
                file.flush()
                os.fsync(file.fileno())
            self.progress.key_files += 1
        record = {
            "identity": self._identity,
            "stamps": [dataclasses.astuple(stamp) for stamp in self._stamps],
            "progress": dataclasses.asdict(self.progress),
        }
        sync(self.data)
        write_atomically(self.folder / _PROGRESS_FILE, json.dumps(record))

    def discard(self) -> None:
        """Makes all of it unfinished, so that nothing is kept when the work fails."""
        (self.folder / _PROGRESS_FILE).unlink(missing_ok=True)

    def keys(self) -> np.ndarray:
        """All digests that were saved, uint64."""
        saved = [np.load(self._keys_path(i)) for i in range(self.progress.key_files)]
        return np.concatenate([np.empty(0, np.uint64), *saved])

    def check_unchanged(self) -> None:
        """Raises UserError if an input is not what it was when the work began."""
        changed = self._changed(self._stamps)
        if changed:
            raise UserError(
                f"{self._stamps[changed[0]].path}: the file changed while it was being read; "
                f"remove {self.folder} and start again"
            )

    def _go_on(self) -> None:
        path = self.folder / _PROGRESS_FILE
        advice = f"remove {self.folder} to start from scratch"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            progress = Finished.from_json(record["progress"])
            stamps = [FileStamp(*stamp) for stamp in record["stamps"]]
            identity = dict(record["identity"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged ({error!r}); {advice}") from None
        for name, value in self._identity.items():
            if identity.get(name) != value:
                raise UserError(
                    f"{self.folder}: an unfinished preparation with {name} = "
                    f"{identity.get(name)!r} is there, and {value!r} is given; give that "
                    f"again to resume it, or {advice}"
                )
        begun = len(stamps) if identity["tokenizer"] == "trained" else progress.file
        begun += progress.block > 0
        if len(stamps) != len(self._stamps):
            raise UserError(
                f"{self.folder}: an unfinished preparation of {len(stamps)} files is there, and "
                f"{len(self._stamps)} are given; {advice}"
            )
        changed = [i for i in self._changed(stamps) if i < begun]
        if changed:
            raise UserError(
                f"{self._stamps[changed[0]].path}: not the file, or no longer the same, of which "
                f"an unfinished preparation is in {self.folder}; {advice}"
            )
        self.progress = progress
        self._remove_unfinished()

    def _changed(self, stamps: Sequence[FileStamp]) -> list[int]:
        now = [FileStamp.of(Path(stamp.path)) for stamp in self._stamps]
        return [i for i, stamp in enumerate(stamps) if stamp != now[i]]

    def _keys_path(self, number: int) -> Path:
        return self.folder / f"keys-{number:05d}.npy"

    def _remove_unfinished(self) -> None:
        """Removes what a killed process was writing or hadn't recorded yet."""
        finished = {
            path
            for split in self.progress.splits.values()
            for shard in split.shards
            for path in shard_paths(self.data, shard.name)
        }
        for path in self.data.glob("*.npy"):
            if path not in finished:
                path.unlink()
        (self.data / METADATA_FILE).unlink(missing_ok=True)


@contextlib.contextmanager
def workspace(
    output: Path, identity: Mapping[str, Any], stamps: Sequence[FileStamp]
) -> Iterator[Workspace]:
    """The workspace beside `output`, new or left by a process that was interrupted.

    Its data becomes `output` when the block ends. When the block fails, it is kept for the next
    time if anything in it is finished, and removed if not.

    Args:
      identity: the options that decide the result.
      stamps: of all inputs.

    Raises:
      UserError: another process works there, or other options or inputs were being prepared.
    """
    folder = partial_folder(output)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        if not try_lock(lock):
            raise UserError(f"{output}: another process is preparing it; wait for it")
        # Whoever worked there may have finished since this process looked.
        if not os.fstat(lock.fileno()).st_nlink or (output.is_dir() and any(output.iterdir())):
            raise UserError(f"{output}: another process has just prepared it; run this again")
        work = Workspace(folder, identity, stamps)
        try:
            yield work
            sync(work.data)
            os.replace(work.data, output)  # over an empty folder at most
            sync(output.parent)
            shutil.rmtree(folder)
        except BaseException:
            if not (folder / _PROGRESS_FILE).exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise


def remove_emptied(output: Path) -> None:
    """Removes the workspace of a process that was killed when its data had become the output."""
    folder = partial_folder(output)
    if folder.is_dir() and not (folder / "data").exists():
        shutil.rmtree(folder)


def partial_folder(output: Path) -> Path:
    """Where the unfinished preparation of `output` lies, if there is one."""
    return output.parent / f".{output.name}.partial"
