"""Runs and models in buckets, by way of local copies: to read, and to work on.

A checkpoint in a bucket counts once its digests are there, which are copied last and deleted first.
So whoever reads at any moment finds whole checkpoints alone.
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator

import orbax.checkpoint as ocp

from mosaicbert_jax import buckets
from mosaicbert_jax.buckets import BucketPath, Stat
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import try_lock
from mosaicbert_jax.lease import LEASE_FILE, Lease, LeaseLostError, held
from mosaicbert_jax.progress import while_ticking
from mosaicbert_jax.storage.checkpoint_files import AVERAGE, DIGESTS_FILE, MODEL, OPTIMIZER, damage
from mosaicbert_jax.storage.workdir import (
    CHECKPOINTS,
    CONFIG_FILE,
    DAMAGED,
    SUITE_FILE,
    InUseError,
)

SYNC_SECONDS = 5.0
_LARGE_BYTES, _LARGE_SECONDS = 2**20, 60.0  # files of this size that grow are copied less often
_STAGE = ".uploading"
_CHECKPOINT = re.compile(rf"((?:.*/)?{CHECKPOINTS})/(\d+)/(.*)")  # parent, step, file


def read_copy(
    place: str | os.PathLike | BucketPath,
    step: int | None = None,
    parts: Collection[str] = (MODEL, AVERAGE),
) -> pathlib.Path:
    """A run, or any other folder or file, in a bucket, copied to this machine for this process.

    A local one is returned as it is. Of a run's checkpoints, one is copied: that of `step`, or the
    last. A copy that is still the same is used again.

    Args:
      step: of a run's checkpoint; None is the last one.
      parts: which of its trees of arrays to copy; with none, no checkpoint is.

    Raises:
      UserError: there is nothing.
      OSError: the bucket can't be read.
    """
    found = buckets.place(place)
    if not isinstance(found, BucketPath):
        return found
    there = found.files()
    chosen = set(_last(there, step)) if parts else set()
    skipped = {MODEL, AVERAGE, OPTIMIZER} - set(parts)

    def wanted(name: str) -> bool:
        match = _CHECKPOINT.fullmatch(name)
        if match and f"{match[1]}/{match[2]}" not in chosen:
            return match[3] == DIGESTS_FILE and bool(parts)  # so that messages can name it
        return not _is_local(name) and not (match and match[3].split("/")[0] in skipped)

    return buckets.local_copy(found, wanted)


def local_folder(place: BucketPath) -> pathlib.Path:
    """Where the working copy of a run in a bucket lies."""
    return buckets.cache_folder() / "runs" / place.local_part()


@contextlib.contextmanager
def working_copy(place: BucketPath, say: Callable[[str], None] = print) -> Iterator[pathlib.Path]:
    """A local copy of a run's folder in a bucket, which follows it while the block runs.

    The block may train in it, as in any local folder; a thread copies to the bucket what is new.
    Another process is kept out by a lease. The copy is deleted when all of a run that ended well is
    in the bucket; else it is kept, and what the bucket lacks of it is uploaded the next time.

    Args:
      say: takes a line for the terminal.

    Yields:
      The local folder.

    Raises:
      InUseError: another process trains there.
      UserError: it holds something else than a run, or it could not be copied to the bucket.
      OSError: the bucket can't be read.
    """
    local = local_folder(place)
    local.parent.mkdir(parents=True, exist_ok=True)
    with local.with_name(f".{local.name}.lock").open("a") as file:
        if not try_lock(file):
            raise InUseError(f"{place} is in use: another process of this machine trains there")

        def stop(why: str) -> None:
            say(f"{why}; this run stops")
            os.kill(os.getpid(), signal.SIGTERM)  # it saves, and ends

        with held(place, on_loss=stop) as lease:
            known = _bring_up_to_date(place, local)
            with _Follower(place, local, lease, known, say):
                yield local
            shutil.rmtree(local)


def _bring_up_to_date(place: BucketPath, local: pathlib.Path) -> set[str]:
    """Makes the local copy that of the bucket, if it isn't ahead of it; the checkpoints there."""
    there = place.files()
    there.pop(LEASE_FILE, None)
    if there and not any(name.split("/")[-1] in (CONFIG_FILE, SUITE_FILE) for name in there):
        raise UserError(f"{place} is neither empty nor a run; give another --workdir")
    committed = _committed(there)
    if there and _is_ahead(place, local, there):
        return committed
    shutil.rmtree(local, ignore_errors=True)
    local.mkdir(parents=True)
    wanted = {
        name: stat
        for name, stat in there.items()
        if not _is_local(name) and _folder_of(name) in (None, *committed)
    }
    if wanted:
        while_ticking(f"fetching {place}", lambda: _fetch(place, local, wanted))
    return committed


def _is_ahead(place: BucketPath, local: pathlib.Path, there: dict[str, Stat]) -> bool:
    """Whether the local copy has all that counts in the bucket, bit for bit, and maybe more."""

    def is_same(name: str) -> bool:
        path = local / name
        return path.is_file() and path.read_bytes() == (place / name).read_bytes()

    # Each process that has trained there has left a file of events of its own.
    others = [name for name in there if _folder_of(name) is None and not _is_local(name)]
    if not all((local / name).is_file() for name in others):
        return False
    records = [name for name in others if name.split("/")[-1] in (CONFIG_FILE, SUITE_FILE)]
    last = [f"{folder}/{DIGESTS_FILE}" for folder in _last(there, None)]
    return all(map(is_same, [*records, *last]))


class _Follower:
    """Copies a local folder to the bucket, by a thread, until its block ends; see `working_copy`.

    Args:
      committed: the checkpoints that the bucket has.
    """

    def __init__(
        self,
        place: BucketPath,
        local: pathlib.Path,
        lease: Lease,
        committed: set[str],
        say: Callable[[str], None],
    ):
        self._place, self._local, self._lease, self._say = place, local, lease, say
        self._committed = set(committed)
        self._copied: dict[str, tuple[int, int]] = {}  # size and time of change, by name
        self._copied_at: dict[str, float] = {}
        self._ended = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="bucket", daemon=True)

    def __enter__(self) -> "_Follower":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        try:
            while_ticking(f"uploading to {self._place}", lambda: self._sync(everything=True))
        except LeaseLostError as error:
            raise UserError(
                f"{error}. What this process had not uploaded by then is in {self._local}"
            ) from None
        except OSError as error:
            raise UserError(
                f"{error.filename}: {error.strerror}; what the bucket lacks of the run is in "
                f"{self._local}, and the same command on this machine uploads it and resumes"
            ) from error

    def _run(self) -> None:
        while not self._ended.wait(SYNC_SECONDS):
            try:
                self._sync()
                self._failing = False
            except LeaseLostError:
                return
            except OSError as error:
                if not self._failing:
                    self._failing = True
                    self._say(f"{error.filename}: {error.strerror}; it is tried again")

    def _sync(self, *, everything: bool = False) -> None:
        self._lease.check()
        here = _committed(_names(self._local))
        self._copy_files(everything=everything)
        for folder in sorted(here - self._committed, key=_step_of):
            self._copy_checkpoint(folder)
        gone = self._committed - _committed(_names(self._local))
        for folder in gone & self._committed:
            self._delete_checkpoint(folder)

    def _copy_files(self, *, everything: bool = False) -> None:
        """Those that have changed."""
        changed = {}
        for name in _names(self._local):
            if _is_local(name) or _folder_of(name) is not None:
                continue
            try:
                stat = (self._local / name).stat()
            except FileNotFoundError:
                continue
            state = stat.st_size, stat.st_mtime_ns
            waited = time.monotonic() - self._copied_at.get(name, -_LARGE_SECONDS)
            is_due = everything or stat.st_size < _LARGE_BYTES or waited >= _LARGE_SECONDS
            if state != self._copied.get(name) and is_due:
                changed[name] = state
        buckets.upload_all(self._local, self._place, changed)
        self._copied |= changed
        self._copied_at |= dict.fromkeys(changed, time.monotonic())

    def _copy_checkpoint(self, folder: str) -> None:
        stage = self._local / _STAGE
        shutil.rmtree(stage, ignore_errors=True)
        try:
            # Linked, as the run may delete it meanwhile.
            shutil.copytree(self._local / folder, stage, copy_function=os.link)
        except (FileNotFoundError, shutil.Error):
            return  # it has
        names = [name for name in _names(stage) if name != DIGESTS_FILE]
        buckets.upload_all(stage, self._place / folder, names)
        self._copy_files(everything=True)  # metrics up to this step, above all
        self._lease.check()
        (self._place / folder / DIGESTS_FILE).upload(stage / DIGESTS_FILE)
        self._committed.add(folder)
        shutil.rmtree(stage)

    def _delete_checkpoint(self, folder: str) -> None:
        place = self._place / folder
        (place / DIGESTS_FILE).unlink(missing_ok=True)
        self._committed.discard(folder)
        buckets.unlink_all(place, place.files())


def _fetch(place: BucketPath, local: pathlib.Path, names: Collection[str]) -> None:
    """Downloads files, and those of checkpoints again that came other than they should."""
    buckets.download_all(place, local, names)
    for folder in _committed(names):
        fetched = [name for name in names if _folder_of(name) == folder]
        if damage(local / folder) is not None:
            buckets.download_all(place, local, fetched)


def _names(folder: pathlib.Path) -> list[str]:
    """All files in a local folder, by their paths in it."""
    found = []
    for parent, _, names in os.walk(folder):
        found += [str(pathlib.Path(parent, name).relative_to(folder)) for name in names]
    return found


def _is_local(name: str) -> bool:
    """Whether a file is not copied to the bucket: it is unfinished, hidden or was set aside."""
    return any(
        part.startswith(".") or part == DAMAGED or ocp.utils.TMP_DIR_SUFFIX in part
        for part in name.split("/")
    )


def _folder_of(name: str) -> str | None:
    """The checkpoint that a file belongs to, by its path in a run's folder or a suite's."""
    found = _CHECKPOINT.fullmatch(name)
    return f"{found[1]}/{found[2]}" if found else None


def _committed(names: Iterable[str]) -> set[str]:
    """The checkpoints that are whole, of all files."""
    return {
        str(folder)
        for name in names
        if (folder := _folder_of(name)) and name == f"{folder}/{DIGESTS_FILE}"
    }


def _step_of(folder: str) -> int:
    return int(folder.rpartition("/")[2])


def _last(names: Iterable[str], step: int | None) -> list[str]:
    """The last checkpoint of each run, or that of `step` where there is one."""
    found: dict[str, str] = {}
    for folder in sorted(_committed(names), key=_step_of):
        parent = folder.rpartition("/")[0]
        if parent not in found or _step_of(found[parent]) != step:
            found[parent] = folder
    return list(found.values())
