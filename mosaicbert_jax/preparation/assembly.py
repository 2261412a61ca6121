"""What becomes of the encoded documents: which are kept, in which split, and in which shard."""

import collections
import copy
import dataclasses
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from mosaicbert_jax.data.shard_files import ShardRecord
from mosaicbert_jax.preparation.duplicates import SeenKeys
from mosaicbert_jax.preparation.execution import Encoded, Execution
from mosaicbert_jax.preparation.inputs import FileEnd, Inputs
from mosaicbert_jax.preparation.unfinished import Finished, Workspace
from mosaicbert_jax.progress import ByteProgress
from mosaicbert_jax.text.encoding import Encoder
from mosaicbert_jax.text.sources import input_bytes

SHARD_BYTES = 64 * 2**20
_CUTS_AT_WORK = 8  # so many pairs of shards are written at a time, where others write them
_PLACES_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class _Cut:
    """What is finished, without its shards, once `shards` are written."""

    progress: Finished
    keys: list[np.ndarray]
    shards: Future[dict[str, ShardRecord]]


class Assembly:
    """Encodes what is left of the inputs, and saves after each shard of the training split.

    All is decided here, from the blocks' summaries in their order, so that who executes it changes
    nothing in the result. This process holds 8 bytes a document, and no token unless the execution
    has it here.
    """

    def __init__(
        self,
        work: Workspace,
        inputs: Inputs,
        encoder: Encoder,
        dtype: np.dtype,
        deduplicate: bool,
        execution: Execution,
    ):
        self._work = work
        self._inputs = inputs
        self._encoder = encoder
        self._execution = execution
        self._token_bytes = np.dtype(dtype).itemsize
        self._shards = execution.shards(work.shards, dtype, work.progress.splits)
        self._seen = SeenKeys(work.keys()) if deduplicate else None
        self._new_keys: list[np.ndarray] = []
        # Of all that was taken; what is finished is the workspace's. Shards are that one's alone.
        self._progress = copy.deepcopy(work.progress)
        for split in self._progress.splits.values():
            split.shards = ()
        self._buffered_bytes = 0  # of the training split
        self._cuts: collections.deque[_Cut] = collections.deque()

    def run(self, say: Callable[[str], None]) -> None:
        """Takes all blocks.

        Raises:
          UserError: something can't be read.
        """
        progress = self._progress
        start = progress.file, progress.block
        done = sum(map(input_bytes, self._inputs.files[: progress.file]))
        notes: list[str] = []
        with ByteProgress("encoding", self._inputs.bytes, done) as bar:
            for item in self._execution.encoded(self._inputs, self._encoder, start, bar):
                if isinstance(item, FileEnd):
                    progress.files.append((item.bytes, item.sha256))
                    progress.file, progress.block = item.file + 1, 0
                    notes += item.notes
                    continue
                self._inputs.check(item.summary.problems)
                self._take(item)
                if self._buffered_bytes >= SHARD_BYTES:
                    self._cut()
                self._save(_CUTS_AT_WORK)
        self._cut()
        self._save(0)
        for note in notes:
            say(f"note: {note}")

    def _take(self, encoded: Encoded) -> None:
        progress, summary = self._progress, encoded.summary
        progress.file, progress.block = encoded.file, encoded.block + 1
        progress.documents[encoded.file] += summary.documents
        progress.empty += summary.documents - len(summary.keys_D)
        for problem in summary.problems:
            progress.skipped[problem.kind] = progress.skipped.get(problem.kind, 0) + 1
            if len(progress.skipped_places) < _PLACES_SHOWN:
                progress.skipped_places.append(f"{problem.place} ({problem.kind})")
        new_D = np.ones(len(summary.keys_D), bool)
        if self._seen is not None:
            new_D = self._seen.first_time(summary.keys_D)
            self._new_keys.append(summary.keys_D[new_D])
        progress.duplicates += int((~new_D).sum())
        held_out_D = summary.keys_D < np.uint64(self._inputs.held_out_below)
        chosen = {"train": new_D & ~held_out_D, "validation": new_D & held_out_D}
        for name, chosen_D in chosen.items():
            split = progress.splits[name]
            split.documents += int(chosen_D.sum())
            split.truncated_documents += int(summary.truncated_D[chosen_D].sum())
            split.unknown_tokens += int(summary.unknown_D[chosen_D].sum())
        self._buffered_bytes += self._token_bytes * int(summary.tokens_D[chosen["train"]].sum())
        if new_D.any():
            self._shards.add(encoded.tokens, chosen)

    def _cut(self) -> None:
        """Has shards made of what was taken since the last time."""
        self._cuts.append(_Cut(copy.deepcopy(self._progress), self._new_keys, self._shards.cut()))
        self._new_keys = []
        self._buffered_bytes = 0

    def _save(self, most_at_work: int) -> None:
        """Saves what is written, in order; waits while more than `most_at_work` cuts are not."""
        while self._cuts and (len(self._cuts) > most_at_work or self._cuts[0].shards.done()):
            cut = self._cuts.popleft()
            shards = cut.shards.result()
            before = self._work.progress
            for name, split in cut.progress.splits.items():
                new = (shards[name],) if name in shards else ()
                split.shards = before.splits[name].shards + new
            cut.progress.key_files = before.key_files
            self._work.progress = cut.progress
            self._work.save(cut.keys)
