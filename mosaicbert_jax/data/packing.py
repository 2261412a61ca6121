"""Which sequences share a row, and in which order the rows come, decided from lengths alone.

Best-fit decreasing (Johnson, "Near-optimal bin packing algorithms", 1973): the longest sequence
first, each into the fullest row that still has room, else into a new row. The rows depend on
nothing but the lengths and their order, so every host finds the same ones by itself.
"""

import dataclasses

import numpy as np
from jaxtyping import Int, Int64

from mosaicbert_jax.data.dataset import TokenDataset
from mosaicbert_jax.data.masking import ROW_BITS, counter_hash
from mosaicbert_jax.data.mixture import Mixture
from mosaicbert_jax.data.order import shuffled


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Row r holds the sequences `order_S[row_starts_R[r] : row_starts_R[r + 1]]`.

    Attributes:
        order_S: int64, every slot 0 … S-1 exactly once, row by row.
        row_starts_R: int64, one entry a row and S at the end.
    """

    order_S: Int64[np.ndarray, "S"]
    row_starts_R: Int64[np.ndarray, "R+1"]

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self.row_starts_R) - 1


def pack(lengths_S: Int[np.ndarray, "S"], row_length: int) -> PackedRows:
    """Packs sequences into rows of at most `row_length` tokens; none is cut.

    Time is O(S log S) for the sort and O(S) for the packing. Equal lengths keep their order, so
    the same input always gives the same rows.

    Raises:
        ValueError: a length is below 1 or above `row_length`.
    """
    lengths_S = np.asarray(lengths_S)
    _check_lengths(lengths_S, row_length)
    longest_first_S = np.argsort(-lengths_S.astype(np.int64), kind="stable")
    row_S = np.array(_best_fit(lengths_S[longest_first_S].tolist(), row_length), dtype=np.int64)
    num_rows = int(row_S.max(initial=-1)) + 1
    by_row_S = np.argsort(row_S, kind="stable")
    row_starts_R = np.zeros(num_rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(row_S, minlength=num_rows), out=row_starts_R[1:])
    return PackedRows(longest_first_S[by_row_S], row_starts_R)


def packing_efficiency(lengths_S: Int[np.ndarray, "S"], num_rows: int, row_length: int) -> float:
    """The share of the rows' tokens that are real, 0 to 1. No rows waste nothing: 1."""
    return int(np.sum(lengths_S, dtype=np.int64)) / (num_rows * row_length) if num_rows else 1.0


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some rows of the stream. Row r has the sequences starts_R[r] … starts_R[r + 1] - 1.

    Attributes:
        sequences_S: int64, indices in the data set.
        lengths_S: their tokens.
        epochs_S: int64, how often all of its data set was read before each: the epoch, but in a
            `Mixture`, whose data sets have their own.
        starts_R: int64, one entry a row and S at the end.
    """

    sequences_S: Int64[np.ndarray, "S"]
    lengths_S: Int[np.ndarray, "S"]
    epochs_S: Int64[np.ndarray, "S"]
    starts_R: Int64[np.ndarray, "R+1"]

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self.starts_R) - 1

    def part(self, first: int, last: int) -> "Rows":
        """The rows first … last - 1."""
        begin, end = self.starts_R[first], self.starts_R[last]
        return Rows(
            self.sequences_S[begin:end],
            self.lengths_S[begin:end],
            self.epochs_S[begin:end],
            self.starts_R[first : last + 1] - begin,
        )

    def layout(self, row_length: int) -> tuple[Int64[np.ndarray, "T"], Int64[np.ndarray, "T"]]:
        """Where each token goes in the flat rows, and the number of its sequence in its row."""
        counts_B = np.diff(self.starts_R)
        ends_S = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths_S, dtype=np.int64)])
        # A row's tokens stand one after the other in T already; only the row's start moves.
        shift_B = np.arange(self.num_rows) * row_length - ends_S[self.starts_R[:-1]]
        numbers_S = np.arange(len(self.lengths_S)) - np.repeat(self.starts_R[:-1], counts_B) + 1
        places_T = np.repeat(np.repeat(shift_B, counts_B), self.lengths_S) + np.arange(ends_S[-1])
        return places_T, np.repeat(numbers_S, self.lengths_S)

    @staticmethod
    def joined(parts: list["Rows"], rows: int) -> "Rows":
        """All parts one after the other, and empty rows up to `rows`."""
        starts_R = np.zeros(rows + 1, np.int64)
        counts = np.concatenate([np.diff(part.starts_R) for part in parts])
        starts_R[1 : len(counts) + 1] = counts
        return Rows(
            np.concatenate([part.sequences_S for part in parts]),
            np.concatenate([part.lengths_S for part in parts]),
            np.concatenate([part.epochs_S for part in parts]),
            np.cumsum(starts_R),
        )


@dataclasses.dataclass(frozen=True)
class RowPlanner:
    """The rows of any window of any epoch, from the lengths alone.

    An epoch is a permutation of all sequences, or what a `Mixture` draws, cut into windows of
    `window_size`; each window is packed by itself, so any of them can be planned without the ones
    before it.
    """

    dataset: TokenDataset | Mixture
    row_length: int
    seed: int
    packing: bool
    window_size: int

    @property
    def num_windows(self) -> int:
        """Windows in an epoch."""
        return -(-len(self.dataset) // self.window_size)

    def plan(self, epoch: int, window: int) -> Rows:
        """The rows of one window; without packing, a row for each sequence.

        Sequences that the data set skips make their window shorter, maybe empty, and no other
        window changes.
        """
        sequences_S, epochs_S = self._drawn(epoch, window)
        if self.dataset.missing:
            is_there_S = self.dataset.is_there(sequences_S)
            sequences_S, epochs_S = sequences_S[is_there_S], epochs_S[is_there_S]
        lengths_S = np.asarray(self.dataset.lengths(sequences_S))
        if not self.packing:
            starts_R = np.arange(len(sequences_S) + 1)
            return Rows(sequences_S, lengths_S, epochs_S, starts_R)
        order_S, starts_R = self._shuffled_rows(pack(lengths_S, self.row_length), epoch, window)
        return Rows(sequences_S[order_S], lengths_S[order_S], epochs_S[order_S], starts_R)

    def _drawn(
        self, epoch: int, window: int
    ) -> tuple[Int64[np.ndarray, "S"], Int64[np.ndarray, "S"]]:
        """The sequences of a window in the order of the epoch, and the `Rows.epochs_S` of each."""
        size = len(self.dataset)
        first = window * self.window_size
        places_S = np.arange(first, min(first + self.window_size, size))
        if isinstance(self.dataset, Mixture):
            return self.dataset.drawn(places_S, epoch, self.seed)
        sequences_S = self.dataset.shuffled(places_S, self.seed, epoch)
        return sequences_S, np.full(len(sequences_S), epoch)

    def _shuffled_rows(
        self, packed: PackedRows, epoch: int, window: int
    ) -> tuple[Int64[np.ndarray, "S"], Int64[np.ndarray, "R+1"]]:
        """The same rows in random order, and the sequences within each row too.

        Best-fit decreasing leaves both sorted by length, and a batch of one length after another
        isn't a sample of the data.
        """
        counts_R = np.diff(packed.row_starts_R)
        key = (self.seed, ROW_BITS, epoch, window)
        if not packed.num_rows:
            return packed.order_S, packed.row_starts_R
        rank_R = shuffled(np.arange(packed.num_rows), packed.num_rows, *key, 0)
        bits_S = counter_hash(*key, 1, packed.order_S)
        order_S = packed.order_S[np.lexsort((bits_S, np.repeat(rank_R, counts_R)))]
        starts_R = np.zeros_like(packed.row_starts_R)
        starts_R[rank_R + 1] = counts_R
        return order_S, np.cumsum(starts_R)


def _best_fit(lengths: list[int], row_length: int) -> list[int]:
    """The row of each sequence, in the order given; rows are numbered as they are opened."""
    # Bit c of `open_capacities` says that rows_by_capacity[c] isn't empty. An integer of row_length
    # bits is a few machine words, so the fullest row with room is found in one shift and one
    # lowest-set-bit, without a search tree.
    open_capacities = 0
    rows_by_capacity: list[list[int]] = [[] for _ in range(row_length)]
    row_of_sequence = []
    num_rows = 0
    for length in lengths:
        with_room = open_capacities >> length
        if with_room:
            capacity = length + (with_room & -with_room).bit_length() - 1
            rows = rows_by_capacity[capacity]
            row = rows.pop()
            if not rows:
                open_capacities ^= 1 << capacity
            left = capacity - length
        else:
            row = num_rows
            num_rows += 1
            left = row_length - length
        row_of_sequence.append(row)
        if left:
            rows_by_capacity[left].append(row)
            open_capacities |= 1 << left
    return row_of_sequence


def _check_lengths(lengths_S: Int[np.ndarray, "S"], row_length: int) -> None:
    if not lengths_S.size:
        return
    shortest, longest = int(lengths_S.min()), int(lengths_S.max())
    if shortest < 1:
        slot = int(lengths_S.argmin())
        raise ValueError(f"sequence {slot} of the window has length {shortest}; at least 1 needed")
    if longest > row_length:
        slot = int(lengths_S.argmax())
        raise ValueError(
            f"sequence {slot} of the window has {longest} tokens and a row holds {row_length}; "
            "a sequence is never cut: use longer rows"
        )
