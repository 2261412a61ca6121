"""A preparation on one machine: this process reads and writes, worker processes do the rest."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future

import numpy as np
from jaxtyping import Bool

from mosaicbert_jax.buckets import Place
from mosaicbert_jax.data.shard_files import ShardRecord
from mosaicbert_jax.parallel import ordered_map
from mosaicbert_jax.preparation.execution import Encoded
from mosaicbert_jax.preparation.inputs import FileEnd, Inputs, Reading
from mosaicbert_jax.preparation.sampling import CandidateReader, Sample, with_limit
from mosaicbert_jax.preparation.shards import ShardWriter
from mosaicbert_jax.preparation.unfinished import SplitProgress
from mosaicbert_jax.progress import ByteProgress
from mosaicbert_jax.text.encoding import BlockTokens, Encoder


class OneMachine:
    """An `Execution` with worker processes, one a core unless the inputs ask for another number.

    This process walks the files; the workers parse and encode the blocks between. Results are taken
    in the order of the blocks.
    """

    def check(self, inputs: Inputs, folder: Place) -> None:
        """There is nothing that would not show at once."""

    def sample(self, inputs: Inputs, most_bytes: int, progress: ByteProgress) -> Sample:
        """See `Execution`."""
        sample = Sample(most_bytes)
        read = CandidateReader(inputs.field, inputs.held_out_below)
        blocks = with_limit(sample, Reading(inputs, progress))
        for candidates in ordered_map(read, blocks, inputs.useful_workers):
            inputs.check(candidates.problems)
            sample.add(candidates)
        return sample

    def encoded(
        self, inputs: Inputs, encoder: Encoder, start: tuple[int, int], progress: ByteProgress
    ) -> Iterator[Encoded | FileEnd]:
        """See `Execution`."""
        reading = Reading(inputs, progress, start)
        for summary, tokens in ordered_map(encoder, reading, inputs.useful_workers):
            while isinstance(place := reading.places.popleft(), FileEnd):
                yield place
            yield Encoded(*place, summary, tokens)
        yield from reading.places  # ends of files alone

    def shards(
        self, folder: Place, dtype: np.dtype, splits: Mapping[str, SplitProgress]
    ) -> "_LocalShards":
        """See `Execution`."""
        return _LocalShards(
            {name: ShardWriter(folder, name, dtype, split.shards) for name, split in splits.items()}
        )


class _LocalShards:
    def __init__(self, writers: dict[str, ShardWriter]):
        self._writers = writers

    def add(self, tokens: BlockTokens, chosen: Mapping[str, Bool[np.ndarray, "D"]]) -> None:
        for name, chosen_D in chosen.items():
            self._writers[name].add(*tokens.part(chosen_D))

    def cut(self) -> Future[dict[str, ShardRecord]]:
        written: Future[dict[str, ShardRecord]] = Future()
        written.set_result(
            {name: record for name, one in self._writers.items() if (record := one.flush())}
        )
        return written
