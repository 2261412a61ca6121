"""Files in buckets, gs://… and s3://…, through fsspec. Local paths stay pathlib's.

Credentials, endpoint and profile are those that gcsfs and s3fs find by themselves: in the
environment (AWS_PROFILE, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, …), or in the files of
their vendors' own tools, as ~/.aws/config.
"""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import io
import logging
import os
import pathlib
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mosaicbert_jax.errors import UserError, call_it
from mosaicbert_jax.progress import AFTER_SECONDS

# A scheme, the package that speaks it, and the extra that installs that.
_SCHEMES = {"gs://": ("gcsfs", "gcs"), "s3://": ("s3fs", "s3")}
PATIENCE = 60.0  # seconds, for which what may pass is tried again
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_CONNECT_SECONDS, _SILENT_SECONDS = 10, 60
_READ_BYTES = 16 * 2**20  # at 50 ms a request and 200 MB/s, 60% of the time is the bytes'
_THREADS = 16  # requests under way at once


@dataclasses.dataclass(frozen=True)
class Stat:
    """A file in a bucket: its bytes, when it was written, and a tag that changes with it."""

    st_size: int
    st_mtime_ns: int
    tag: str = ""


@dataclasses.dataclass(frozen=True, order=True)
class BucketPath:
    """A file or folder in a bucket, with those methods of pathlib.Path that have a meaning there.

    What may pass, as an overloaded server or a broken connection, is tried again for PATIENCE
    seconds. A folder is there if a file is in it.

    Attributes:
      url: without a slash at its end.
      size: bytes of a file, as a list of files told them; None if none did.

    Raises:
      OSError: from all methods that reach the bucket: FileNotFoundError, PermissionError, …; its
        `filename` is the URL, its `strerror` one line.
      UserError: from those too, if the package that speaks the scheme is not installed.
    """

    url: str
    size: int | None = dataclasses.field(default=None, compare=False)

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "BucketPath":
        return BucketPath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        """What stands behind the last slash."""
        return self.url.rsplit("/", 1)[1]

    @property
    def suffix(self) -> str:
        """Of the name, as ".gz"."""
        return pathlib.PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "BucketPath":
        """The folder."""
        return BucketPath(self.url.rsplit("/", 1)[0])

    def absolute(self) -> "BucketPath":
        """Itself."""
        return self

    def resolve(self) -> "BucketPath":
        """Itself."""
        return self

    def local_part(self) -> pathlib.PurePosixPath:
        """A relative path that tells it from all others, as "s3/bucket/folder"."""
        scheme, _, rest = self.url.partition("://")
        return pathlib.PurePosixPath(scheme, *(part for part in rest.split("/") if part != ".."))

    def stat(self) -> Stat:
        """Of a file, as it is now."""
        return _stat(self._call(lambda fs, path: fs.info(path)))

    def is_file(self) -> bool:
        """Whether a file is there."""
        return self._call(lambda fs, path: fs.isfile(path))

    def is_dir(self) -> bool:
        """Whether a file is in it."""
        return self._call(lambda fs, path: bool(fs.isdir(path)))

    def exists(self) -> bool:
        """Whether it is a file or a folder."""
        return self._call(lambda fs, path: fs.exists(path))

    def files(self) -> dict[str, Stat]:
        """All files in a folder, at any depth, by their path in it; none if it is not there.

        Names that lead out of a local folder, as "../a", are skipped: files are copied to them.
        """

        def find(fs, path):
            found = fs.find(path, detail=True)
            return {name[len(path) :].lstrip("/"): _stat(info) for name, info in found.items()}

        # Some tools write "", or a name with a slash behind, for an empty folder.
        return {
            name: stat
            for name, stat in sorted(self._call(find).items())
            if not {"", ".", ".."} & set(name.split("/"))
        }

    def glob(self) -> "list[BucketPath]":
        """The files that match, if the URL is a pattern with *, ?, [ ] or **."""
        scheme = self.url.partition("://")[0]
        found = self._call(lambda fs, path: fs.glob(path, detail=True))
        return [
            BucketPath(f"{scheme}://{name}", info["size"])
            for name, info in sorted(found.items())
            if info["type"] == "file"
        ]

    def read_bytes(self) -> bytes:
        """All of a file."""
        return self._call(lambda fs, path: fs.cat_file(path))

    def read_text(self, encoding: str = "utf-8") -> str:
        """All of a file."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes, *, new: bool = False) -> None:
        """Replaces a file.

        Args:
          new: only if it is not there; where the server can't tell, it is replaced.

        Raises:
          FileExistsError: it is there.
        """
        mode = "create" if new else "overwrite"
        with _no_bucket(self.url):
            self._call(lambda fs, path: fs.pipe_file(path, data, mode=mode))

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes a file."""
        try:
            self._call(lambda fs, path: fs.rm_file(path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def download(self, target: pathlib.Path) -> None:
        """Copies a file to a local path, whole; folders on the way are made."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.{time.monotonic_ns()}")

        def get(fs, path):
            size = fs.info(path)["size"]
            fs.get_file(path, str(temporary))
            if temporary.stat().st_size != size:
                raise ConnectionError(f"{temporary.stat().st_size} of {size} bytes came")
            temporary.replace(target)

        try:
            self._call(get)
        finally:
            temporary.unlink(missing_ok=True)

    def upload(self, source: pathlib.Path) -> None:
        """Replaces a file by a local one."""
        with _no_bucket(self.url):
            self._call(lambda fs, path: fs.put_file(str(source), path))

    def open(self, mode: str = "rb", buffering: int = -1) -> io.RawIOBase | io.BufferedReader:
        """Opens a file for reading; see `BucketFile`."""
        if mode != "rb":
            raise ValueError(f"mode {mode!r}: files in buckets are opened for reading")
        file = BucketFile(self)
        return io.BufferedReader(file) if buffering else file

    def _range(self, begin: int, end: int) -> bytes:
        def cat(fs, path):
            data = fs.cat_file(path, start=begin, end=end)
            if len(data) != end - begin:
                raise ConnectionError(f"{len(data)} of {end - begin} bytes came")
            return data

        return self._call(cat)

    def _call(self, action: Callable[[Any, str], Any]) -> Any:
        """`action` of the file system and the path in it, tried again while it may succeed."""
        fs, path = _file_system(self.url)
        began, pause, told = time.monotonic(), _FIRST_PAUSE, False
        while True:
            try:
                return action(fs, path)
            except Exception as error:  # the libraries raise many kinds
                if (
                    isinstance(error, OSError)
                    and error.filename
                    and "://" not in str(error.filename)
                ):
                    raise  # of a local file
                spent = time.monotonic() - began
                final = _final(error, self.url)
                if final is not None:
                    raise final from error
                if spent + pause > PATIENCE:
                    said = f"{_reason(error)}; it was tried for {spent:.0f} s"
                    raise OSError(None, said, self.url) from error
                if spent > AFTER_SECONDS and not told:
                    told = True
                    print(f"{self.url}: {_reason(error)}; trying again", file=sys.stderr)
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)


Place = pathlib.Path | BucketPath


def is_url(text: object) -> bool:
    """Whether a text, or a BucketPath, names something in a bucket."""
    return str(text).startswith(tuple(_SCHEMES))


def place(text: str | os.PathLike | BucketPath) -> Place:
    """A path as it is given: of a local file system, or in a bucket."""
    if isinstance(text, BucketPath) or not is_url(text):
        return text if isinstance(text, BucketPath) else pathlib.Path(text)
    scheme, _, rest = str(text).partition("://")
    parts = [part for part in rest.split("/") if part]
    if not parts:
        raise UserError(f"{text}: no bucket; write {scheme}://BUCKET/PATH")
    return BucketPath(f"{scheme}://{'/'.join(parts)}")


def local_copy(
    text: str | os.PathLike | BucketPath, wanted: Callable[[str], bool] = lambda name: True
) -> pathlib.Path:
    """A file or folder in a bucket, copied to this machine for as long as this process runs.

    A local one is returned as it is. A copy that is still the same is used again.

    Args:
      wanted: whether to copy a file of a folder, by its path in it.

    Raises:
      UserError: there is nothing.
      OSError: the bucket can't be read.
    """
    source = place(text)
    if not isinstance(source, BucketPath):
        return source
    there = {name: stat for name, stat in source.files().items() if wanted(name)}
    if not there:
        if not source.is_file():
            raise UserError(f"{source}: nothing is there; check the URL")
        there = {"": source.stat()}
    key = source.url, tuple(there)
    if key not in _COPIES or _COPIES[key].of != there:
        root = tempfile.TemporaryDirectory(prefix="mosaicbert-")
        target = pathlib.Path(root.name) / source.local_part()
        if "" in there:
            source.download(target)
        else:
            download_all(source, target, there)
        _COPIES[key] = _Copy(there, target, root)
        call_it(target, source)
    return _COPIES[key].target


@dataclasses.dataclass(frozen=True)
class _Copy:
    of: dict[str, Stat]
    target: pathlib.Path
    root: tempfile.TemporaryDirectory  # is deleted with this


_COPIES: dict[tuple[str, tuple[str, ...]], _Copy] = {}  # by URL and names of files


@contextlib.contextmanager
def uploaded(text: str | os.PathLike | BucketPath, last: str = "") -> Iterator[pathlib.Path]:
    """A local path to write a file or folder at, which is uploaded when the block ends.

    A local path is yielded as it is.

    Args:
      last: the file of a folder that is uploaded after the others, by which it is known.

    Raises:
      UserError: the folder exists.
      OSError: the bucket can't be written.
    """
    target = place(text)
    if not isinstance(target, BucketPath):
        yield target
        return
    if target.is_dir():
        raise UserError(f"{target} already exists; give a new folder")
    with tempfile.TemporaryDirectory(prefix="mosaicbert-") as root:
        local = pathlib.Path(root) / target.name
        call_it(local, target)
        yield local
        if local.is_dir():
            names = [path.relative_to(local) for path in local.rglob("*") if path.is_file()]
            others = [str(name) for name in names if str(name) != last]
            upload_all(local, target, others)
            upload_all(local, target, [last] if len(others) < len(names) else [])
        else:
            target.upload(local)


def cache_folder() -> pathlib.Path:
    """Where what comes from buckets is kept: in XDG_CACHE_HOME, or ~/.cache."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mosaicbert"


def at_once(action: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """`action` of each item, several at once, with the results in their order."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(action, items))


def download_all(source: BucketPath, target: pathlib.Path, names: Iterable[str]) -> None:
    """Copies files of a folder, by their paths in it."""
    at_once(lambda name: (source / name).download(target / name), names)


def upload_all(source: pathlib.Path, target: BucketPath, names: Iterable[str]) -> None:
    """Copies files into a folder in a bucket, by their paths in it."""
    at_once(lambda name: (target / name).upload(source / name), names)


def unlink_all(folder: BucketPath, names: Iterable[str]) -> None:
    """Deletes files of a folder, by their paths in it, if they are there."""
    at_once(lambda name: (folder / name).unlink(missing_ok=True), names)


class BucketFile(io.RawIOBase):
    """A file in a bucket, read in pieces of 16 MiB, each while the one before it is used."""

    def __init__(self, path: BucketPath):
        self._path, self._size, self._at = path, path.stat().st_size, 0
        self._begin, self._piece = 0, b""  # what is held, and where it stands in the file
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._next: tuple[int, concurrent.futures.Future[bytes]] | None = None

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves; nothing is read."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        """Where it stands."""
        return self._at

    def readinto(self, buffer) -> int:
        """Reads at most as many bytes as the buffer has; 0 at the end."""
        if self._at >= self._size:
            return 0
        if not self._begin <= self._at < self._begin + len(self._piece):
            self._begin, self._piece = self._at, self._take(self._at)
        offset = self._at - self._begin
        data = self._piece[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        """Ends what reads ahead."""
        if not self.closed:
            self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _take(self, begin: int) -> bytes:
        ahead, self._next = self._next, None
        if ahead is not None and ahead[0] == begin:
            piece = ahead[1].result()
        else:
            piece = self._path._range(begin, min(begin + _READ_BYTES, self._size))
        after = begin + len(piece)
        if after < self._size:
            end = min(after + _READ_BYTES, self._size)
            self._next = after, self._pool.submit(self._path._range, after, end)
        return piece


def _connect(scheme: str) -> Any:
    package, extra = _SCHEMES[scheme]
    try:
        import fsspec

        __import__(package)
    except ImportError as error:
        raise UserError(
            f"{scheme} needs the package {package}: `pip install 'mosaicbert-jax[{extra}]'` (in a "
            f"checkout: `pip install -e '.[{extra}]'`)"
        ) from error
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs tracebacks of what it raises
    # Whether something is there is always asked anew: other processes write too.
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "s3://":
        options["config_kwargs"] = {
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": _SILENT_SECONDS,
        }
    else:
        import aiohttp

        options["session_kwargs"] = {
            "timeout": aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS
            )
        }
    return fsspec.filesystem(scheme.removesuffix("://"), **options)


def forget_connections() -> None:
    """Connects anew from now on, as the environment says then."""
    for connection in _CONNECTIONS.values():
        type(connection).clear_instance_cache()
    _CONNECTIONS.clear()


def _file_system(url: str) -> tuple[Any, str]:
    scheme, _, path = url.partition("://")
    with _CONNECTING:
        if scheme not in _CONNECTIONS:
            _CONNECTIONS[scheme] = _connect(f"{scheme}://")
    return _CONNECTIONS[scheme], path


_CONNECTIONS: dict[str, Any] = {}  # by scheme
_CONNECTING = threading.Lock()


def _stat(info: Mapping[str, Any]) -> Stat:
    written = info.get("LastModified") or info.get("mtime") or info.get("updated")
    if isinstance(written, str):
        written = datetime.datetime.fromisoformat(written)
    nanoseconds = int(written.timestamp() * 1e6) * 1000 if written is not None else 0
    tag = info.get("ETag") or info.get("generation") or ""
    return Stat(int(info["size"] or 0), nanoseconds, str(tag))


def _final(error: Exception, url: str) -> OSError | None:
    """What to raise for an error that trying again does not mend; None for others."""
    kind, module = type(error), type(error).__module__
    status = str(getattr(error, "code", "") or getattr(error, "status", ""))
    reason = _reason(error)
    if isinstance(error, FileExistsError):
        return FileExistsError(None, "is there already", url)
    if isinstance(error, FileNotFoundError) or status == "404":
        missing = "bucket" in reason and "not exist" in reason
        return FileNotFoundError(None, "no such bucket" if missing else "no such file", url)
    forbidden = isinstance(error, PermissionError) or "Forbidden" in reason
    if forbidden or status in ("401", "403"):
        return PermissionError(
            None, f"access is denied ({reason}); check the credentials and their rights", url
        )
    if "Credentials" in kind.__name__:  # of botocore and of google.auth
        return PermissionError(None, f"no credentials were found ({reason})", url)
    if module.startswith("botocore") and ("Profile" in kind.__name__ or "Region" in kind.__name__):
        return OSError(None, reason, url)
    if isinstance(error, (ValueError, TypeError, AttributeError, IsADirectoryError)):
        return OSError(None, reason, url)
    return None


@contextlib.contextmanager
def _no_bucket(url: str) -> Iterator[None]:
    """Says what is missing where a file can't be written because something is."""
    try:
        yield
    except FileNotFoundError as error:
        if error.filename != url:
            raise  # a local file
        raise FileNotFoundError(None, "no such bucket", url) from error


def _reason(error: Exception) -> str:
    text = " ".join(str(getattr(error, "message", "") or error).split())
    return text[:200] or type(error).__name__
