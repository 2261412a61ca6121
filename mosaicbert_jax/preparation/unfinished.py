"""An unfinished preparation: what is finished of it, and its folder.

Beside the output NAME there is `.NAME.partial` until the data set is whole:

    lock                  held by the process that works there; it goes with the process
    progress.json         `Finished`, rewritten whole after each pair of shards
    keys-00000.npy        the digests of the documents in these shards
    data/                 the finished shards; becomes NAME

Of an output in a bucket this folder is in the local cache. Its shards are written to the bucket,
and the rest is copied there too, to NAME/.partial, so that another machine can resume; dataset.json
comes last.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mosaicbert_jax import buckets
from mosaicbert_jax.buckets import BucketPath, Place
from mosaicbert_jax.data.dataset import METADATA_FILE
from mosaicbert_jax.data.shard_files import ShardRecord, shard_paths
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import sync, try_lock, write_atomically
from mosaicbert_jax.lease import LEASE_FILE, held
from mosaicbert_jax.text.sources import record_files

_PROGRESS_FILE = "progress.json"
_PARTIAL = ".partial"  # in an output in a bucket


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
    def of(cls, path: Place) -> "FileStamp":
        """Of a file, or of a data set of tensorflow-datasets."""
        is_folder = isinstance(path, Path) and path.is_dir()
        found = [part.stat() for part in (record_files(path) if is_folder else [path])]
        return cls(
            str(path.absolute()),
            sum(status.st_size for status in found),
            max((status.st_mtime_ns for status in found), default=0),
        )


def stamps_of(paths: Sequence[Place]) -> list[FileStamp]:
    """Of each file as it is now."""
    if any(isinstance(path, BucketPath) for path in paths):
        return buckets.at_once(FileStamp.of, paths)
    return [FileStamp.of(path) for path in paths]


class Workspace:
    """The folder of an unfinished preparation. Make it with `workspace`.

    Args:
      folder: local.
      bucket: the output, if it is in one.

    Attributes:
      data: the folder that becomes the output, or what of it is not shards.
      shards: where these are written.
      progress: what is finished.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        stamps: Sequence[FileStamp],
        bucket: BucketPath | None = None,
    ):
        self.folder = folder
        self.data = folder / "data"
        self.bucket = bucket
        self.shards: Place = bucket or self.data
        self.progress = Finished()
        self._identity = dict(identity)
        self._stamps = list(stamps)
        if bucket is not None:
            self._fetch(bucket / _PARTIAL)
        if (folder / _PROGRESS_FILE).is_file() and self.data.is_dir():
            self._go_on()
        else:
            self.discard()  # of data that became an output, which is gone
            shutil.rmtree(self.data, ignore_errors=True)
            self.data.mkdir()

    def save(self, keys: Sequence[np.ndarray] = ()) -> None:
        """Makes what was written since the last time part of what is finished."""
        new_keys = []
        if keys:
            new_keys = [self._keys_path(self.progress.key_files).name]
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
        if self.bucket is not None:
            partial = self.bucket / _PARTIAL
            tokenizer = [path.name for path in self.data.iterdir()]
            buckets.upload_all(self.data, partial / "data", set(tokenizer) - self._uploaded)
            self._uploaded |= set(tokenizer)
            buckets.upload_all(self.folder, partial, new_keys)
            (partial / _PROGRESS_FILE).upload(self.folder / _PROGRESS_FILE)

    def discard(self) -> None:
        """Makes all of it unfinished, so that nothing is kept when the work fails."""
        (self.folder / _PROGRESS_FILE).unlink(missing_ok=True)
        if self.bucket is not None:
            (self.bucket / _PARTIAL / _PROGRESS_FILE).unlink(missing_ok=True)

    def finish(self, output: Place) -> None:
        """Makes the data the output."""
        if self.bucket is None:
            sync(self.data)
            os.replace(self.data, output)  # over an empty folder at most
            sync(output.parent)
        else:
            names = {path.name for path in self.data.iterdir()} - {METADATA_FILE}
            buckets.upload_all(self.data, self.bucket, names)
            (self.bucket / METADATA_FILE).upload(self.data / METADATA_FILE)
            remove_emptied(self.bucket)
        shutil.rmtree(self.folder)

    def _fetch(self, partial: BucketPath) -> None:
        """What the bucket has of it, in place of what was here."""
        self._uploaded: set[str] = set()
        shutil.rmtree(self.data, ignore_errors=True)
        for path in (*self.folder.glob("keys-*.npy"), self.folder / _PROGRESS_FILE):
            path.unlink(missing_ok=True)
        names = partial.files()
        if _PROGRESS_FILE in names:
            buckets.download_all(partial, self.folder, names)

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
        now = stamps_of([buckets.place(stamp.path) for stamp in self._stamps])
        return [i for i, stamp in enumerate(stamps) if stamp != now[i]]

    def _keys_path(self, number: int) -> Path:
        return self.folder / f"keys-{number:05d}.npy"

    def _remove_unfinished(self) -> None:
        """Removes what a killed process was writing or hadn't recorded yet."""
        finished = {
            path
            for split in self.progress.splits.values()
            for shard in split.shards
            for path in shard_paths(self.shards, shard.name)
        }
        if self.bucket is not None:
            there = {name for name in self.bucket.files() if name.endswith(".npy")}
            names = {path.name for path in finished}
            buckets.unlink_all(self.bucket, {name for name in there - names if "/" not in name})
        for path in self.data.glob("*.npy"):
            if path not in finished:
                path.unlink()
        (self.data / METADATA_FILE).unlink(missing_ok=True)


@contextlib.contextmanager
def workspace(
    output: Place, identity: Mapping[str, Any], stamps: Sequence[FileStamp]
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
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context((folder / "lock").open("a"))
        if not try_lock(lock):
            raise UserError(f"{output}: another process is preparing it; wait for it")
        bucket = output if isinstance(output, BucketPath) else None
        if bucket is not None:
            stack.enter_context(held(bucket, on_loss=_stop))
        # Whoever worked there may have finished since this process looked.
        if not os.fstat(lock.fileno()).st_nlink or is_prepared(output):
            raise UserError(f"{output}: another process has just prepared it; run this again")
        work = Workspace(folder, identity, stamps, bucket)
        try:
            yield work
            work.finish(output)
        except BaseException:
            if not (folder / _PROGRESS_FILE).exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _stop(why: str) -> None:
    print(f"{why}; this preparation stops", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGINT)


def is_prepared(output: Place) -> bool:
    """Whether there is something at the output, unfinished preparations aside."""
    if isinstance(output, BucketPath):
        names = output.files()
        is_unfinished = f"{_PARTIAL}/{_PROGRESS_FILE}" in names and METADATA_FILE not in names
        hidden = (f"{_PARTIAL}/", LEASE_FILE)
        return not is_unfinished and any(not name.startswith(hidden) for name in names)
    return output.exists() and not (output.is_dir() and not any(output.iterdir()))


def remove_emptied(output: Place) -> None:
    """Removes the workspace of a process that was killed when its data had become the output."""
    if isinstance(output, BucketPath):
        buckets.unlink_all(output / _PARTIAL, (output / _PARTIAL).files())
        return
    folder = partial_folder(output)
    if folder.is_dir() and not (folder / "data").exists():
        shutil.rmtree(folder)


def partial_folder(output: Place) -> Path:
    """Where the unfinished preparation of `output` lies, if there is one."""
    if isinstance(output, BucketPath):
        return buckets.cache_folder() / "preparing" / output.local_part()
    return output.parent / f".{output.name}.partial"
