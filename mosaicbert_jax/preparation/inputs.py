"""The inputs of a preparation, and reading them from a given place."""

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

from mosaicbert_jax.data.dataset import SourceRecord
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.parallel import available_cores
from mosaicbert_jax.preparation.unfinished import FileStamp, stamps_of
from mosaicbert_jax.progress import ByteProgress
from mosaicbert_jax.text.readers import Block, Problem, blocks
from mosaicbert_jax.text.sources import InputFile, Source, disk_files, input_bytes
from mosaicbert_jax.text.streams import Follower, Tally

_BYTES_WORTH_A_WORKER = 2**20


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is read, and how.

    Attributes:
      sources: one an input as given.
      field: the key or column that holds the text, where there are such.
      stop_on_error: whether what can't be read ends it all, or is skipped.
      held_out_below: documents with a key below it are held out.
      workers: processes asked for; None: one a core.
    """

    sources: tuple[Source, ...]
    field: str
    stop_on_error: bool
    held_out_below: int
    workers: int | None

    @property
    def files(self) -> list[InputFile]:
        """The files of all sources, in order."""
        return [file for source in self.sources for file in source.files]

    @property
    def bytes(self) -> int:
        """On disk."""
        return sum(map(input_bytes, self.files))

    @property
    def useful_workers(self) -> int:
        """As many as asked for, but no more than have work to do."""
        return min(self.workers or available_cores(), 1 + self.bytes // _BYTES_WORTH_A_WORKER)

    def stamps(self) -> list[FileStamp]:
        """Of each file as it is now."""
        return stamps_of([file.path for file in self.files])

    def records(
        self, files: Sequence[tuple[int, str]], documents: Sequence[int]
    ) -> tuple[SourceRecord, ...]:
        """What dataset.json holds of the sources.

        Args:
          files: bytes and sha256 of each file.
          documents: of each file.
        """
        records = []
        begin = 0
        for source in self.sources:
            end = begin + len(source.files)
            of_source = files[begin:end]
            records.append(
                SourceRecord(
                    name=source.name,
                    bytes=sum(size for size, _ in of_source),
                    sha256=_joint_digest([sha256 for _, sha256 in of_source]),
                    documents=sum(documents[begin:end]),
                    files=len(of_source),
                    license=source.license,
                    attribution=source.attribution,
                )
            )
            begin = end
        return tuple(records)

    def digests(self) -> list[str]:
        """The sha256 of each source as in its record, without parsing anything."""
        with ByteProgress("checking inputs", self.bytes) as progress:
            done = 0
            found = []
            for source in self.sources:
                of_files = []
                for file in source.files:
                    tally = Tally()
                    Follower(disk_files(file), tally).advance(1)
                    of_files.append(tally.sha256)
                    done += tally.bytes
                    progress.to(done)
                found.append(_joint_digest(of_files))
        return found

    def check(self, problems: Sequence[Problem]) -> None:
        """Raises UserError for the first problem, unless problems are skipped."""
        if problems and self.stop_on_error:
            raise UserError(f"{problems[0]}")


@dataclasses.dataclass(frozen=True)
class FileEnd:
    """A file that was read to its end.

    Attributes:
      file: its number among the inputs.
      bytes: on disk.
      sha256: of them.
      notes: what a reader should be told of it; see `Tally`.
    """

    file: int
    bytes: int
    sha256: str
    notes: tuple[str, ...]

    @classmethod
    def of(cls, file: int, tally: Tally) -> "FileEnd":
        """From the file's tally."""
        return cls(file, tally.bytes, tally.sha256, tuple(tally.notes))


class Reading:
    """Iterates over the blocks of all inputs, from block `start[1]` of file `start[0]` on.

    What lies before them in that file is read too, but not yielded.

    Attributes:
      places: (file, block) of each block that was yielded, and the ends of files between; the
        caller pops them as they are processed.
    """

    def __init__(self, inputs: Inputs, progress: ByteProgress, start: tuple[int, int] = (0, 0)):
        self.places: collections.deque[tuple[int, int] | FileEnd] = collections.deque()
        self._inputs = inputs
        self._progress = progress
        self._start = start

    def __iter__(self) -> Iterator[Block | Problem]:
        files = self._inputs.files
        done = sum(map(input_bytes, files[: self._start[0]]))
        for number in range(self._start[0], len(files)):
            tally = Tally()
            for block, item in enumerate(blocks(files[number], self._inputs.field, tally)):
                self._progress.to(done + tally.bytes)
                if (number, block) >= self._start:
                    self.places.append((number, block))
                    yield item
            self.places.append(FileEnd.of(number, tally))
            done += input_bytes(files[number])


def _joint_digest(sha256s: Sequence[str]) -> str:
    if len(sha256s) == 1:
        return sha256s[0]
    return hashlib.sha256("".join(f"{sha256}\n" for sha256 in sha256s).encode()).hexdigest()
