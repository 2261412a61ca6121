"""What a preparation asks of the machine or the cluster that executes it.

The algorithm is one, in assembly.py and sampling.py; local.py and cluster.py execute it.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool

from mosaicbert_jax.buckets import Place
from mosaicbert_jax.data.shard_files import ShardRecord
from mosaicbert_jax.preparation.inputs import FileEnd, Inputs
from mosaicbert_jax.preparation.sampling import Sample
from mosaicbert_jax.preparation.unfinished import SplitProgress
from mosaicbert_jax.progress import ByteProgress
from mosaicbert_jax.text.encoding import BlockSummary, Encoder


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A block that was encoded.

    Attributes:
      file: its file's number among the inputs.
      block: its number in the file.
      tokens: the block's `BlockTokens`, or what stands for them, for `Shards.add`.
    """

    file: int
    block: int
    summary: BlockSummary
    tokens: Any


class Shards(Protocol):
    """Writes the shards of all splits."""

    def add(self, tokens: Any, chosen: Mapping[str, Bool[np.ndarray, "D"]]) -> None:
        """Appends some documents of a block to each split."""

    def cut(self) -> Future[dict[str, ShardRecord]]:
        """Writes what was added since the last cut: a shard of each split that has any of it."""


class Execution(Protocol):
    """Where blocks are read, encoded, and written."""

    def check(self, inputs: Inputs, folder: Place) -> None:
        """Raises UserError if the work, in `folder`, can't be done here."""

    def sample(self, inputs: Inputs, most_bytes: int, progress: ByteProgress) -> Sample:
        """Documents for training of at most `most_bytes` in all, drawn by digest.

        Raises:
          UserError: something can't be read.
        """

    def encoded(
        self, inputs: Inputs, encoder: Encoder, start: tuple[int, int], progress: ByteProgress
    ) -> Iterator[Encoded | FileEnd]:
        """Yields each block from `start` (file, block) on, and each file's end, in their order."""

    def shards(self, folder: Place, dtype: np.dtype, splits: Mapping[str, SplitProgress]) -> Shards:
        """Of tokens of `dtype`, in a data set's folder, numbered after those of the splits."""
