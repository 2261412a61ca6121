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
from mosaicbert_jax.data.dataset import ShardRecord, shard_paths
from mosaicbert_jax.files import sync
from mosaicbert_jax.preparation.inputs import FileEnd
from mosaicbert_jax.preparation.sampling import CandidateReader, Sample
from mosaicbert_jax.preparation.shards import write_shard
from mosaicbert_jax.text.encoding import BlockSummary, BlockTokens, Encoder
from mosaicbert_jax.text.readers import Block, Problem, blocks
from mosaicbert_jax.text.sources import InputFile
from mosaicbert_jax.text.streams import Tally


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
        "Python": platform.python_version(),
        "mosaicbert_jax": __version__,
        **{name: version(name) for name in ("tokenizers", "numpy", "pyarrow")},
    }


def look(sizes: Mapping[Path, int], probe: Path) -> tuple[dict[str, str], str | None]:
    """The versions here, and what is wrong with the files as this node sees them.

    Args:
      sizes: of all inputs on disk.
      probe: a file that was written just now where the work is done.
    """
    if not probe.is_file():
        return versions(), f"{probe.parent.parent} is another folder there"
    if not os.access(probe.parent, os.W_OK):
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
    number: int, file: InputFile, field: str, first_block: int
) -> Iterator[Placed | FileEnd]:
    """Yields the blocks of a file from `first_block` on, and its end."""
    tally = Tally()
    for block, item in enumerate(blocks(file, field, tally)):
        if block >= first_block:
            yield Placed(block, tally.bytes, item)
    yield FileEnd.of(number, tally)


def encode(encoder: Encoder, read: Placed | FileEnd) -> tuple[Placed | FileEnd, BlockTokens | None]:
    """The summary and the tokens of a block; the end of a file as it is."""
    if isinstance(read, FileEnd):
        return read, None
    summary, tokens = _built_once(encoder)(read.item)
    return dataclasses.replace(read, item=summary), tokens


@functools.lru_cache(maxsize=1)
def _built_once(encoder: Encoder) -> Encoder:
    """The first of equal encoders, which keeps its tokenizer for the next block."""
    # A node runs a task on each of its CPUs; threads of the tokenizer's own would only compete.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return encoder


def write(
    folder: Path,
    names: Mapping[str, str],
    chosen: Sequence[Mapping[str, Bool[np.ndarray, "D"]]],
    *tokens: BlockTokens,
) -> dict[str, ShardRecord]:
    """Writes a shard of each split into folder / "data".

    Each file appears there whole: a node that is lost while it writes leaves a folder beside.

    Args:
      names: of the shards, by split.
      chosen: of each block, its documents in each split.
      tokens: of these blocks.
    """
    unfinished = Path(tempfile.mkdtemp(dir=folder, prefix="writing-"))
    records = {}
    for split, name in names.items():
        parts = [one.part(of_one[split]) for one, of_one in zip(tokens, chosen, strict=True)]
        parts = [part for part in parts if len(part[1])]
        records[split] = write_shard(unfinished, name, *zip(*parts, strict=True))
        for path in shard_paths(unfinished, name):
            path.replace(folder / "data" / path.name)
    sync(folder / "data")
    shutil.rmtree(unfinished)
    return records
