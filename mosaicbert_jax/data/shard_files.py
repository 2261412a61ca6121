"""The files of shards: mapped into memory where they lie, or fetched from a bucket ahead."""

import abc
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import os
import threading
import time
import warnings
import weakref
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from mosaicbert_jax.buckets import BucketPath, Place
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import try_lock
from mosaicbert_jax.progress import AFTER_SECONDS, LOG_SECONDS

_HEADER_BYTES = 128  # of .npy, before the array
_FETCHERS = 8  # at 50 ms a request and 200 MB/s, they wait for the bytes alone
_DOWNLOADS = 3  # of a file whose digest is another
_ABANDONED_SECONDS = 3600  # after its last byte, a download that is not whole


@dataclasses.dataclass(frozen=True)
class ShardRecord:
    """One shard: two files, `name`.tokens.npy and `name`.offsets.npy, and their digests."""

    name: str
    sequences: int
    tokens: int
    tokens_sha256: str
    offsets_sha256: str

    def files(self, folder: Place, dtype: np.dtype) -> "tuple[ShardFile, ShardFile]":
        """Its file of tokens, which are of that dtype, and its file of offsets."""
        tokens, offsets = shard_paths(folder, self.name)
        return (
            ShardFile(tokens, self.tokens_sha256, dtype, self.tokens),
            ShardFile(offsets, self.offsets_sha256, np.dtype(np.uint64), self.sequences + 1),
        )


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """One file of a shard: an array of `size` numbers."""

    path: Place
    sha256: str
    dtype: np.dtype
    size: int

    @property
    def bytes(self) -> int:
        """Of the file."""
        return _HEADER_BYTES + self.size * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Cache:
    """Where fetched shards are kept, and how many bytes of them.

    Files are named by their digests, so that data sets, runs and processes may share a folder.
    """

    folder: Path
    most_bytes: int


class Shards(abc.ABC):
    """The arrays of a split's shards, by number."""

    @abc.abstractmethod
    def open(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and offsets of a shard.

        Raises:
          UserError: a file that is missing or another than dataset.json says; names it.
        """

    @abc.abstractmethod
    def expect(self, now: Sequence[int], later: Sequence[int]) -> None:
        """Tells which shards are going to be opened, and which after them."""


class LocalShards(Shards):
    """Of a local folder, all opened at once. Their digests are not read; see `integrity`."""

    def __init__(
        self,
        folder: Path,
        records: Sequence[ShardRecord],
        dtype: np.dtype,
        without: Collection[str],
    ):
        _allow_open_files(2 * len(records))
        nothing = np.empty(0, dtype), np.empty(0, np.uint64)
        self._arrays = [
            nothing if record.name in without else _mapped(record, record.files(folder, dtype))
            for record in records
        ]

    def open(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Shards`."""
        return self._arrays[shard]

    def expect(self, now: Sequence[int], later: Sequence[int]) -> None:
        """See `Shards`; they are there."""


class FetchedShards(Shards):
    """Of a bucket, fetched into a cache by threads, in the order in which they are expected.

    What the digest in dataset.json doesn't fit is fetched again, and what could not be fetched
    ahead when it is opened. Shards that are no longer expected make room for others.

    Raises:
      UserError: from `open`, if a shard is not to be had whole.
    """

    def __init__(
        self, folder: BucketPath, records: Sequence[ShardRecord], dtype: np.dtype, cache: Cache
    ):
        self._folder, self._records, self._dtype, self.cache = folder, records, dtype, cache
        self._futures: dict[int, concurrent.futures.Future] = {}
        self._expected: set[int] = set()
        self._turns = threading.Semaphore(_FETCHERS)
        self._fetched: set[str] = set()  # digests that this process has read
        self.pinned: set[str] = set()  # digests
        cache.folder.mkdir(parents=True, exist_ok=True)
        for path in cache.folder.glob(".*.npy.*"):  # of a process that was killed
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()
        _OPEN.add(self)

    def expect(self, now: Sequence[int], later: Sequence[int]) -> None:
        """See `Shards`. Those that were expected now before this call are kept too."""
        kept = self._expected | set(now)
        room = self.cache.most_bytes - sum(map(self._bytes, kept))
        wanted = list(now)
        for shard in later:
            room -= self._bytes(shard)
            if room >= 0 or shard in kept:
                wanted.append(shard)
        self._expected = set(now)
        for shard in self._futures.keys() - kept - set(wanted):
            self._futures.pop(shard).cancel()
        self.pinned = {file.sha256 for shard in kept | set(wanted) for file in self._files(shard)}
        for shard in wanted:
            self._start(shard)

    def open(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Shards`; waits until it is there."""
        future = self._start(shard)
        began = told = time.monotonic()
        while True:
            try:
                return future.result(timeout=1.0)
            except concurrent.futures.TimeoutError:
                if future.done():
                    raise
                now = time.monotonic()
                if now - began > AFTER_SECONDS and now - told > LOG_SECONDS:
                    told = now
                    done = sum(each.done() for each in self._futures.values())
                    print(f"waiting for shards of {self._folder}: {done} of {len(self._futures)}")

    def _files(self, shard: int) -> tuple[ShardFile, ShardFile]:
        return self._records[shard].files(self._folder, self._dtype)

    def _bytes(self, shard: int) -> int:
        return sum(file.bytes for file in self._files(shard))

    def _start(self, shard: int) -> concurrent.futures.Future:
        future = self._futures.get(shard)
        if future is None or (future.done() and future.exception() is not None):
            future = self._futures[shard] = concurrent.futures.Future()
            # Not a pool's, which the end of the process would wait for.
            threading.Thread(target=self._work, args=(shard, future), daemon=True).start()
        return future

    def _work(self, shard: int, future: concurrent.futures.Future) -> None:
        with self._turns:
            if not future.set_running_or_notify_cancel():
                return
            try:
                paths = [self._fetch(file) for file in self._files(shard)]
                future.set_result(_mapped(self._records[shard], self._files(shard), paths))
            except BaseException as error:  # it is raised where the shard is opened
                future.set_exception(error)

    def _fetch(self, file: ShardFile) -> Path:
        """The local copy of a file, whole."""
        local = self.cache.folder / f"{file.sha256}.npy"
        with (self.cache.folder / f".{file.sha256}.lock").open("a") as lock:
            while not try_lock(lock):  # another process fetches it
                time.sleep(0.05)
            if local.exists() and (file.sha256 in self._fetched or _sha256(local) == file.sha256):
                os.utime(local)
            else:
                with self._room_for(file):
                    self._download(file, local)
            self._fetched.add(file.sha256)
        return local

    def _download(self, file: ShardFile, local: Path) -> None:
        for _ in range(_DOWNLOADS):
            try:
                file.path.download(local)
            except FileNotFoundError:
                raise damaged(file.path, "it is missing") from None
            if _sha256(local) == file.sha256:
                return
            local.unlink()
        raise damaged(file.path, "its sha256 is not the one in dataset.json")

    @contextlib.contextmanager
    def _room_for(self, file: ShardFile) -> Iterator[None]:
        """Deletes the files that were not used for longest, until there is room."""
        with _MAKING_ROOM:
            _COMING.append((self.cache.folder, file.bytes))
            others = [each for each in _OPEN if each.cache.folder == self.cache.folder]
            pinned = set().union(*(each.pinned for each in others))
            coming = sum(size for folder, size in _COMING if folder == self.cache.folder)
            there = []
            for path in self.cache.folder.glob("*.npy"):
                try:
                    there.append((path.stat().st_mtime_ns, path.stat().st_size, path))
                except FileNotFoundError:
                    continue  # another process has deleted it
            left = self.cache.most_bytes - coming - sum(size for _, size, _ in there)
            for _, size, path in sorted(there):
                if left >= 0:
                    break
                if path.stem not in pinned:
                    path.unlink(missing_ok=True)
                    path.with_name(f".{path.stem}.lock").unlink(missing_ok=True)
                    left += size
        try:
            yield
        finally:
            with _MAKING_ROOM:
                _COMING.remove((self.cache.folder, file.bytes))


# Of this process: what is open; and what is being fetched: into which folder, and its bytes.
_OPEN: weakref.WeakSet[FetchedShards] = weakref.WeakSet()
_COMING: list[tuple[Path, int]] = []
_MAKING_ROOM = threading.Lock()


def shard_paths(folder: Place, name: str) -> tuple[Place, Place]:
    """The files of tokens and of offsets of a shard."""
    return folder / f"{name}.tokens.npy", folder / f"{name}.offsets.npy"


def _mapped(
    record: ShardRecord, files: Sequence[ShardFile], paths: Sequence[Path] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    tokens, offsets = (
        _map_array(file, path or file.path)
        for file, path in zip(files, paths or (None, None), strict=True)
    )
    if offsets[-1] != record.tokens:
        raise damaged(files[1].path, "its last offset is not the number of tokens")
    return tokens, offsets


def _map_array(file: ShardFile, path: Path) -> np.ndarray:
    try:
        with warnings.catch_warnings(action="error"):  # of a header that NumPy had to guess
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        file_bytes = path.stat().st_size
    except FileNotFoundError:
        raise damaged(file.path, "it is missing") from None
    except Exception as error:  # its header is read as Python, which fails in many ways
        why = f"it cannot be read as an array ({type(error).__name__})"
        raise damaged(file.path, why) from None
    whole = array.offset + array.nbytes
    if array.dtype != file.dtype or array.shape != (file.size,) or file_bytes != whole:
        raise damaged(
            file.path,
            f"it holds {array.dtype}{list(array.shape)}, dataset.json says "
            f"{file.dtype}[{file.size}]",
        )
    # A plain view: memmap's own slicing is several times slower.
    return array.view(np.ndarray)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _allow_open_files(files: int) -> None:
    """Raise the soft limit for `files` and those of other data sets, of which nothing is known
    here: Python's mmap keeps a descriptor a file."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    most = 2**16 if hard == resource.RLIM_INFINITY else min(hard, max(soft, 2**16))
    if files + 128 > most:
        raise UserError(
            f"the data set needs {files} open files and this machine allows {most} in all; "
            "raise the limit (ulimit -Hn)"
        )
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def damaged(path: Place, why: str) -> UserError:
    """That a file of a data set is not what it should be, and what to do."""
    return UserError(f"{path}: {why}; restore the file or prepare the data set again")
