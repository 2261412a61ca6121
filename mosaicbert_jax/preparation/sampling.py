"""A sample of documents that doesn't depend on the order in which they are read."""

import dataclasses
import heapq
from collections.abc import Iterable, Iterator

from mosaicbert_jax.text.encoding import cut_point, document_digest
from mosaicbert_jax.text.readers import Block, Problem, documents

_DOCUMENT_CHARS = 2**20  # of one document, so that one can't fill the sample
_NO_LIMIT = 2**64


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Documents of one block that may be in the sample: (rank, UTF-8 bytes); and all their bytes.

    What is wrong with the block is left for the encoding to tell; `problems` has it for a caller
    that would rather stop at once.
    """

    ranked: tuple[tuple[int, bytes], ...]
    text_bytes: int
    problems: tuple[Problem, ...]


@dataclasses.dataclass(frozen=True)
class CandidateReader:
    """Reads a block, given with the rank from which on documents are out.

    Attributes:
      field: the key that holds the text.
      held_out_below: documents with a key below it are not for training, and never in a sample.
    """

    field: str
    held_out_below: int

    def __call__(self, item: tuple[int, Block | Problem]) -> Candidates:
        """The documents of a block that may be in the sample."""
        limit, block = item
        if isinstance(block, Problem):
            return Candidates((), 0, (block,))
        ranked, problems, text_bytes = [], [], 0
        for document in documents(block, self.field):
            if isinstance(document, Problem):
                problems.append(document)
                continue
            key, rank = document_digest(document.text)
            if key < self.held_out_below or not document.text.strip():
                continue
            text = document.text[: cut_point(document.text, 0, _DOCUMENT_CHARS)].encode()
            text_bytes += len(text)
            if rank < limit:
                ranked.append((rank, text))
        return Candidates(tuple(ranked), text_bytes, tuple(problems))


class Sample:
    """The documents of lowest rank that together fit into `most_bytes`, each text once.

    Iterating yields the texts by rank, as often as wanted.
    """

    def __init__(self, most_bytes: int, limit: int = _NO_LIMIT):
        self.limit = limit  # the rank from which on nothing can get in any more
        self.bytes = 0
        self.read_bytes = 0
        self._most_bytes = most_bytes
        self._heap: list[tuple[int, bytes]] = []  # highest rank first
        self._ranks: set[int] = set()

    def add(self, candidates: Candidates) -> None:
        """Adds candidates, and drops those beyond the limit."""
        self.read_bytes += candidates.text_bytes
        for rank, text in candidates.ranked:
            if rank < self.limit and rank not in self._ranks:
                heapq.heappush(self._heap, (-rank, text))
                self._ranks.add(rank)
                self.bytes += len(text)
        while self.bytes > self._most_bytes:
            self.limit = self._drop_highest()

    def merge(self, other: "Sample") -> None:
        """Makes this the sample of what was read for both, of at most as many bytes."""
        self.limit = min(self.limit, other.limit)
        while self._heap and -self._heap[0][0] >= self.limit:
            self._drop_highest()
        ranked = tuple((-negative, text) for negative, text in other._heap)
        self.add(Candidates(ranked, other.read_bytes, ()))

    def _drop_highest(self) -> int:
        negative, text = heapq.heappop(self._heap)
        self._ranks.remove(-negative)
        self.bytes -= len(text)
        return -negative

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[str]:
        return (text.decode() for _, text in sorted(self._heap, key=lambda entry: -entry[0]))

    @property
    def is_whole(self) -> bool:
        """Whether nothing was skipped for lack of room."""
        return self.limit == _NO_LIMIT


def with_limit(
    sample: Sample, blocks: Iterable[Block | Problem]
) -> Iterator[tuple[int, Block | Problem]]:
    """Blocks with the sample's limit as it is when they are taken: less to send back."""
    return ((sample.limit, block) for block in blocks)
