"""The bytes of files: counted and hashed as they lie on disk, decompressed, in pieces."""

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

_PIECE_BYTES = 2**20


class Tally:
    """What has been read of a file so far: its bytes on disk, and their sha256.

    Attributes:
      notes: what a reader should be told of the file, though nothing is wrong.
    """

    def __init__(self):
        self.bytes = 0
        self.notes: list[str] = []
        self._sha256 = hashlib.sha256()

    def count(self, data: bytes | memoryview) -> None:
        """Adds bytes that were read."""
        self.bytes += len(data)
        self._sha256.update(data)

    @property
    def sha256(self) -> str:
        """Of what was read so far, in hexadecimal."""
        return self._sha256.hexdigest()


class BrokenStreamError(Exception):
    """A file that can't be read further: it ends early, is damaged, or isn't UTF-8.

    Attributes:
      kind: "truncated file", "damaged file", "long window" or "not UTF-8".
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def read_pieces(path: Path, tally: Tally | None = None) -> Iterator[bytes | memoryview]:
    """Yields a file's content, decompressed if it ends in .gz or .zst, in pieces of any length.

    Args:
      tally: follows what has been read, as it is on disk.

    Raises:
      BrokenStreamError: after all that could be decompressed.
      OSError: the file can't be opened or read.
    """
    with path.open("rb", buffering=0) as file:
        raw = file if tally is None else _Counted(file, tally)
        yield from _DECOMPRESSORS.get(path.suffix.lower(), _plain)(raw)


class Follower:
    """Counts files in step with a library that reads them by itself.

    The files count as one, strung together. Counting starts where the tally stands.
    """

    def __init__(self, paths: Sequence[Path], tally: Tally):
        self._tally = tally
        self._sizes = [path.stat().st_size for path in paths]
        self._pieces = self._read(paths)

    def advance(self, fraction: float) -> None:
        """Counts on until the tally has this fraction of all bytes; 1 is all.

        Raises:
          OSError: a file can't be read.
        """
        until = int(sum(self._sizes) * fraction)
        while self._tally.bytes < until and (piece := next(self._pieces, None)):
            self._tally.count(piece)

    def _read(self, paths: Sequence[Path]) -> Iterator[bytes]:
        skip = self._tally.bytes
        for path, size in zip(paths, self._sizes, strict=True):
            if skip < size:
                with path.open("rb", buffering=0) as file:
                    file.seek(skip)
                    while piece := file.read(_PIECE_BYTES):
                        yield piece
            skip = max(0, skip - size)


class _Counted(io.RawIOBase):
    """Passes a file's bytes on to a decompressor and counts them."""

    def __init__(self, file: io.RawIOBase, tally: Tally):
        self._file = file
        self._tally = tally

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        length = self._file.readinto(buffer)
        self._tally.count(memoryview(buffer)[:length])
        return length


def _plain(raw: io.RawIOBase) -> Iterator[bytes]:
    while piece := raw.read(_PIECE_BYTES):
        yield piece


def _gunzip(raw: io.RawIOBase) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=raw) as file:
        try:
            # Not read(), which forgets what it has so far when the data break off.
            while piece := file.read1(_PIECE_BYTES):
                yield piece
        except EOFError:
            raise _truncated() from None
        except (zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(error) from None


def _unzstd(raw: io.RawIOBase) -> Iterator[memoryview]:
    import pyarrow as pa

    stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
    while True:
        piece = bytearray(b"\xff") * _PIECE_BYTES
        try:
            length = stream.readinto(piece)
        except OSError as error:
            if error.errno is not None:
                raise
            # What came out before is in the piece, its length is lost. No UTF-8 has a byte 0xff.
            yield memoryview(piece.rstrip(b"\xff"))
            raise _zstd_problem(str(error)) from None
        if not length:
            return
        yield memoryview(piece)[:length]


def _zstd_problem(reason: str) -> BrokenStreamError:
    if "Truncated" in reason:
        return _truncated()
    if "too much memory" in reason:
        return BrokenStreamError(
            "long window",
            "compressed with a window of more than 128 MiB (zstd --long); decompress it first: "
            "zstd -d --long=31 FILE",
        )
    return _damaged(reason)


_DECOMPRESSORS = {".gz": _gunzip, ".zst": _unzstd}
COMPRESSIONS = tuple(_DECOMPRESSORS)


def _truncated() -> BrokenStreamError:
    return BrokenStreamError(
        "truncated file", "the compressed data break off; fetch or make the file again"
    )


def _damaged(error: object) -> BrokenStreamError:
    return BrokenStreamError(
        "damaged file", f"the compressed data are damaged ({error}); fetch or make the file again"
    )
