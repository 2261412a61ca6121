"""What a node of a cluster does in a preparation: plain functions, which cluster.py makes tasks of.

Each gives the same for the same arguments, however often it is begun.
"""

import dataclasses
import functools
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from mosaicbert_jax import __version__
from mosaicbert_jax.buckets import BucketPath, Place
from mosaicbert_jax.data.shard_files import ShardRecord, shard_paths
from mosaicbert_jax.files import sync
from mosaicbert_jax.preparation.inputs import FileEnd
from mosaicbert_jax.preparation.sampling import CandidateReader, Sample
from mosaicbert_jax.preparation.shards import write_shard
from mosaicbert_jax.text.encoding import BlockSummary, BlockTokens, Encoder
from mosaicbert_jax.text.readers import Block, Problem, blocks
from mosaicbert_jax.text.sources import InputFile
from mosaicbert_jax.text.streams import Tally

# Of a block's documents, those that go into each split.
Chosen = Mapping[str, Bool[np.ndarray, "D"]]


@dataclasses.dataclass(frozen=True)
class Placed:
    """Something of a block, with the block's number in its file.

    Attributes:
      bytes: of the file, on disk, that were read by then.
    """

    block: int
    bytes: int
    item: Block | Problem | BlockSummary


def versions() -> dict[str, str]:
    """Of what decides the bytes of a data set."""
    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "mosaicbert_jax": __version__,
        **{name: version(name) for name in ("tokenizers", "numpy", "pyarrow")},
    }


def look(sizes: Mapping[Place, int], probe: Place) -> tuple[dict[str, str], str | None]:
    """The versions here, and what is wrong with the files as this node sees them.

    Args:
      sizes: of all inputs on disk.
      probe: a file that was written just now where the work is done.
    """
    try:
        is_there = probe.is_file()
    except OSError as error:  # a bucket's
        return versions(), f"{probe.parent.parent} can't be read there ({error.strerror})"
    if not is_there:
        return versions(), f"{probe.parent.parent} is another folder there"
    if isinstance(probe, Path) and not os.access(probe.parent, os.W_OK):
        return versions(), f"{probe.parent.parent} can't be written there"
    for path, size in sizes.items():
        try:
            there = path.stat().st_size
        except OSError as error:
            return versions(), f"{path} can't be read there ({error.strerror})"
        if there != size:
            return versions(), f"{path} has {there:,} bytes there and {size:,} here"
    return versions(), None


def sample_file(
    file: InputFile, read: CandidateReader, most_bytes: int, limit: int, stop: bool
) -> tuple[Sample, Problem | None]:
    """The sample of one file, and what of it can't be read, at which it stops if asked to.

    Args:
      limit: the rank from which on nothing is wanted.
    """
    sample = Sample(most_bytes, limit)
    for block in blocks(file, read.field, Tally()):
        candidates = read((sample.limit, block))
        if candidates.problems and stop:
            return sample, candidates.problems[0]
        sample.add(candidates)
    return sample, None


def read_file(
    number: int, file: InputFile, field: str, first_block: int, at_once: int
) -> Iterator[list[Placed | FileEnd]]:
    """Yields the blocks of a file from `first_block` on, and its end, `at_once` together."""
    tally = Tally()
    read: list[Placed | FileEnd] = []
    for block, item in enumerate(blocks(file, field, tally)):
        if block >= first_block:
            read.append(Placed(block, tally.bytes, item))
        if len(read) == at_once:
            yield read
            read = []
    yield [*read, FileEnd.of(number, tally)]


def encode(
    encoder: Encoder, read: Sequence[Placed | FileEnd]
) -> tuple[list[Placed | FileEnd], list[BlockTokens | None]]:
    """The summaries and the tokens of blocks; the end of a file as it is."""
    encoder = _built_once(encoder)
    summaries: list[Placed | FileEnd] = []
    all_tokens: list[BlockTokens | None] = []
    for one in read:
        tokens = None
        if isinstance(one, Placed):
            summary, tokens = encoder(one.item)
            one = dataclasses.replace(one, item=summary)
        summaries.append(one)
        all_tokens.append(tokens)
    return summaries, all_tokens


@functools.lru_cache(maxsize=1)
def _built_once(encoder: Encoder) -> Encoder:
    """The first of equal encoders, which keeps its tokenizer for the next blocks."""
    return encoder


def write(
    folder: Place,
    names: Mapping[str, str],
    chosen: Sequence[Mapping[int, Chosen]],
    *encoded: Sequence[BlockTokens],
) -> dict[str, ShardRecord]:
    """Writes a shard of each split into a bucket's folder, or into folder / "data".

    Each file appears there whole: a node that is lost while it writes leaves a folder beside.

    Args:
      names: of the shards, by split.
      chosen: for each of `encoded`, which documents of which of its blocks go where.
      encoded: the tokens of blocks that were encoded together.
    """
    is_local = not isinstance(folder, BucketPath)
    unfinished = Path(tempfile.mkdtemp(dir=folder, prefix="writing-")) if is_local else folder
    records = {}
    for split, name in names.items():
        parts = [
            tokens[number].part(of_block[split])
            for tokens, of_task in zip(encoded, chosen, strict=True)
            for number, of_block in of_task.items()
        ]
        parts = [part for part in parts if len(part[1])]
        records[split] = write_shard(unfinished, name, *zip(*parts, strict=True))
        for path in shard_paths(unfinished, name) if is_local else ():
            path.replace(folder / "data" / path.name)
    if is_local:
        sync(folder / "data")
        shutil.rmtree(unfinished)
    return records
