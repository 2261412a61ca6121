"""Verifies the files of data sets by the digests that `prepare` wrote."""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from tqdm import tqdm

from mosaicbert_jax.buckets import BucketPath, Place, Stat
from mosaicbert_jax.data.dataset import DatasetMetadata
from mosaicbert_jax.data.shard_files import ShardFile
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.text.vocabulary import token_dtype

STOP, SKIP = "stop", "skip"  # what to do at damaged shards: data.on_error

_THREADS = 8  # a core takes in about 1 to 2 GB/s
_QUIET_SECONDS = 2.0  # less is not worth a bar
_TOLD = 5  # shards that a message names

# By path: size, time of the last change in ns, inode, and the sha256 that was found.
Seen = Mapping[str, list]


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard of a data set by name, and the digests that its files should have."""

    folder: Place
    name: str
    sequences: int
    files: tuple[ShardFile, ...]

    def __str__(self) -> str:
        return str(self.folder / self.name)

    @property
    def is_remote(self) -> bool:
        """Whether it is in a bucket."""
        return isinstance(self.folder, BucketPath)


@dataclasses.dataclass(frozen=True)
class Findings:
    """What reading the files has shown.

    Attributes:
      damaged: why, by shard; a file that is missing, or whose digest is another.
      seen: to be given again, so that files that have not changed since are not read again.
    """

    damaged: Mapping[Shard, str]
    seen: Seen


def shards_of(folder: str | os.PathLike) -> list[Shard]:
    """All shards of a data set, in order.

    Raises:
      UserError: no data set; or its tokenizer is not the one that it was made with.
    """
    metadata = DatasetMetadata.load(folder)
    path = metadata.tokenizer_path
    reason = _damage(path, metadata.tokenizer.sha256, {}, {})
    if reason is not None:
        raise UserError(f"{path}: {reason}; restore the file or prepare the data set again")
    dtype = token_dtype(metadata.padded_vocab_size)
    return [
        Shard(
            metadata.folder,
            shard.name,
            shard.sequences,
            shard.files(metadata.folder, dtype),
        )
        for split in metadata.splits.values()
        for shard in split.shards
    ]


def examine(shards: Iterable[Shard], seen: Seen) -> Findings:
    """Reads the files of all shards, some at a time, with a bar if that takes long.

    Of shards in a bucket, the list of files shows which are missing or have another size; their
    digests are checked when they are fetched.

    Args:
      seen: see `Findings`.
    """
    shards = list(shards)
    files = [(shard, file) for shard in shards for file in shard.files]
    now: dict[str, list] = {}
    listed = {
        folder: folder.files() for folder in {shard.folder for shard in shards if shard.is_remote}
    }

    def why(item: tuple[Shard, ShardFile]) -> str | None:
        shard, file = item
        if shard.is_remote:
            reason = _misfit(file, listed[shard.folder])
        else:
            reason = _damage(file.path, file.sha256, seen, now)
        return None if reason is None else f"{file.path.name}: {reason}"

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        reasons = list(
            tqdm(
                pool.map(why, files),
                desc="reading the data's files",
                total=len(files),
                delay=_QUIET_SECONDS,
                unit="file",
                leave=False,
            )
        )
    damaged: dict[Shard, str] = {}
    for (shard, _), reason in zip(files, reasons, strict=True):
        if reason is not None:
            damaged.setdefault(shard, reason)
    return Findings(damaged, now)


def refuse(damaged: Mapping[Shard, str], of: int) -> None:
    """Raises a UserError that names damaged shards, if there are any.

    Args:
      damaged: see `Findings`.
      of: the sequences of all shards.
    """
    if damaged:
        lost = sum(shard.sequences for shard in damaged)
        raise UserError(
            f"{describe_damage(damaged)}. Restore the files or prepare the data set again; or give "
            f"--config.data.on_error={SKIP} to train without them, {lost:,} of {of:,} sequences"
        )


def describe_damage(damaged: Mapping[Shard, str]) -> str:
    """The shards with what is wrong with each; of many the first."""
    names = [f"{shard} ({reason})" for shard, reason in damaged.items()]
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    noun = "shard is" if len(names) == 1 else "shards are"
    return f"{len(names)} {noun} damaged: {', '.join(names[:_TOLD])}{more}"


def read_seen(path: Path) -> Seen:
    """What `seen_text` wrote; nothing if that can't be read, and every file is then read again."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def seen_text(seen: Seen) -> str:
    """For a file that `read_seen` reads."""
    return json.dumps(seen, indent=0, sort_keys=True) + "\n"


def _misfit(file: ShardFile, there: Mapping[str, Stat]) -> str | None:
    """Why a file in a bucket can't be the one that is meant."""
    if file.path.name not in there:
        return "it is missing"
    size = there[file.path.name].st_size
    return None if size == file.bytes else f"it has {size:,} bytes and should have {file.bytes:,}"


def _damage(path: Path, sha256: str, seen: Seen, now: dict[str, list]) -> str | None:
    """Why a file is not the one with this digest; None: it is. Adds what is seen to `now`."""
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            state = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
            known = seen.get(str(path.absolute()))
            if isinstance(known, list) and known[:3] == state and len(known) == 4:
                found = known[3]
            else:
                found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    now[str(path.absolute())] = [*state, found]
    return None if found == sha256 else "its sha256 is not the one in dataset.json"
