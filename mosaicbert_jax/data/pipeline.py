"""The batches of a run: order, packing, masking and assembly, resumable anywhere.

Order and packing are global. The shuffled order of an epoch is cut into windows, each window is
packed from the stored lengths, and a global batch is the next rows of that one stream. Every host
plans the whole stream, which costs no read of a token, and then reads only its own rows.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Int64, UInt64

from mosaicbert_jax.data.dataset import DatasetMetadata, TokenDataset
from mosaicbert_jax.data.masking import TokenMasking, predictions_per_row
from mosaicbert_jax.data.mixture import Mixture
from mosaicbert_jax.data.packing import RowPlanner, Rows
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.parallel import follow_parent

if TYPE_CHECKING:
    from mosaicbert_jax.text.word_starts import WordStarts


@dataclasses.dataclass(frozen=True, order=True)
class Position:
    """The next row to be read, the same on every host: all that a checkpoint keeps of the data.

    A position that stands at the end of a window or an epoch is written as the start of the next.
    """

    epoch: int = 0
    window: int = 0
    row: int = 0

    def to_dict(self) -> dict[str, int]:
        """A JSON record."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, int]) -> "Position":
        """Raises UserError if the record isn't one of a position."""
        fields = {field.name for field in dataclasses.fields(cls)}
        if set(record) != fields or not all(int(value) >= 0 for value in record.values()):
            raise UserError(
                f"data position {dict(record)}: expected {sorted(fields)}, none negative; "
                "the checkpoint isn't one of this version's"
            )
        return cls(**{name: int(value) for name, value in record.items()})


@dataclasses.dataclass(frozen=True)
class Batch:
    """One host's part of a global batch.

    Attributes:
        arrays: what the training step takes, B being this host's rows.
            tokens_BL int32, masked, the pad id where nothing stands;
            segment_ids_BL int32, 1, 2, … in each row, 0 for padding;
            positions_BP int32, the columns to predict, ascending, unused slots 0;
            labels_BP int32, the tokens that stood there, unused slots 0;
            weights_BP float32, 1 for a used slot and 0 for an unused one.
        sequences: sequences in the global batch.
        tokens: tokens in the global batch, [CLS] and [SEP] included, padding not.
        slots: of the global batch's rows, padding included.
        overflowed: chosen tokens of this host that found no slot in their row and stay unmasked;
            None where nothing is masked.
        position: where the next batch starts; save this one.
        draws_BP: of the predicted tokens, by which a lower masking rate chooses of them; see
            `masking.thinned`. None unless asked for.
    """

    arrays: dict[str, np.ndarray]
    sequences: int
    tokens: int
    slots: int
    overflowed: int | None
    position: Position
    draws_BP: UInt64[np.ndarray, "B P"] | None = None


class PackedBatches(grain.IterDataset):
    """The stream of batches, without end or over `epochs` epochs.

    Masks are those of `TokenMasking`, P is `predictions_per_row(row_length, masking_rate)`. When
    the epochs end within a batch, padding rows fill it up. With `packing=False` each sequence has
    a row to itself. A data set of any size works: a batch spans as many windows and epochs as it
    needs.

    The iterator's state is {"epoch", "window", "row"}; setting it costs the planning of one
    window, wherever it stands.

    Args:
        dataset: the tokens and the lengths.
        row_length: L, at least the data set's max_seq_len.
        rows_per_batch: rows of the global batch.
        seed: decides order and masks.
        masking_rate: the probability with which a token is to be predicted.
        masking_unit: what is chosen together: see `TokenMasking`. With words and spans, a few rows
            in a thousand have more than P.
        with_draws: whether batches have `draws_BP`.
        packing: whether sequences share rows.
        epochs: after how many epochs to stop; None for never.
        window_size: sequences that are packed together. Part of the order: a run keeps it.
        process_index: this host, which takes the process_index-th part of each global batch.
        process_count: hosts.
        position: where to start.

    Raises:
        UserError: a setting doesn't fit the data set or the others.
    """

    def __init__(
        self,
        dataset: TokenDataset | Mixture,
        *,
        row_length: int,
        rows_per_batch: int,
        seed: int,
        masking_rate: float,
        masking_unit: str = "token",
        with_draws: bool = False,
        packing: bool = True,
        epochs: int | None = None,
        window_size: int = 8192,
        process_index: int = 0,
        process_count: int = 1,
        position: Position | None = None,
    ):
        super().__init__()
        metadata = dataset.metadata
        _check_row_length(row_length, metadata.max_seq_len)
        _check_rows_per_batch(rows_per_batch, process_index, process_count)
        if window_size < 1:
            raise UserError(f"window_size {window_size}: at least 1 needed; 8192 is the default")
        if len(dataset) - dataset.missing < 1:
            raise UserError("the data set has no sequences: prepare it from a text that has some")
        self._planner = RowPlanner(dataset, row_length, seed, packing, window_size)
        self._epochs = epochs
        self._assembler = _Assembler(
            dataset,
            row_length,
            predictions_per_row(row_length, masking_rate, masking_unit),
            TokenMasking(
                seed=seed,
                rate=masking_rate,
                vocab_size=metadata.vocab_size,
                padded_vocab_size=metadata.padded_vocab_size,
                special_token_ids=metadata.special_token_ids,
                unit=masking_unit,
                word_starts=_word_starts(metadata) if masking_unit != "token" else None,
            ),
            with_draws,
        )
        self._rows_per_batch = rows_per_batch
        rows_per_host = rows_per_batch // process_count
        self._host_rows = slice(process_index * rows_per_host, (process_index + 1) * rows_per_host)
        self._start = position or Position()
        self._worker, self._workers = 0, 1

    def __iter__(self) -> "_BatchIterator":
        return _BatchIterator(self)

    def __str__(self) -> str:
        return f"PackedBatches(rows_per_batch={self._rows_per_batch})"

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Leaves every `sl.step`-th batch from `sl.start` on: grain's hook for its workers.

        grain calls it on a copy for each worker and interleaves what they yield, so the batches
        and their order are the same for any number of workers.
        """
        if sequential_slice:
            raise ValueError("the stream has no end to divide: use sequential_slice=False")
        self._worker, self._workers = sl.start or 0, sl.step or 1


def batches(
    dataset: TokenDataset | Mixture,
    *,
    position: Position | None = None,
    prefetch: int = 2,
    workers: int = 0,
    **settings: Any,
) -> grain.DatasetIterator[Batch]:
    """The batches from `position` on, `prefetch` of them made ahead.

    Each batch carries the position after it, so what is waiting in a queue never matters to a
    checkpoint, and a position that was saved with some workers resumes with any others. What goes
    wrong in a thread or a worker is raised here, at the batch that it concerns. `close()`, or
    `contextlib.closing`, ends them.

    Args:
        workers: processes that make the batches in turn, two waiting in each; they start in a few
            seconds. 0: a thread of this process makes them.
        settings: the keyword arguments of `PackedBatches`.
    """
    source = PackedBatches(dataset, position=position, **settings)
    if not workers:
        return iter(
            grain.experimental.ThreadPrefetchIterDataset(source, prefetch_buffer_size=prefetch)
        )
    if not flags.FLAGS.is_parsed():
        # grain's workers read flags of absl, which only a program that absl starts has parsed.
        flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=prefetch)
    return iter(source.mp_prefetch(options, worker_init_fn=_start_worker))


def _start_worker(worker: int, workers: int) -> None:
    """What grain calls in each of its processes."""
    follow_parent()


class _BatchIterator(grain.DatasetIterator):
    """Walks the stream; holds one planned window."""

    def __init__(self, source: PackedBatches):
        super().__init__()
        self._source = source
        self._planner = source._planner
        self._is_closed = False
        self._planned: tuple[int, int, Rows] | None = None
        # Worker w of n leaves the first w batches to the others, and n - 1 after each of its own.
        self._position = self._take(source._start, source._worker * source._rows_per_batch)[1]

    def __next__(self) -> Batch:
        if self._is_closed:
            raise ValueError("this iterator over batches is closed; make a new one")
        rows_per_batch, workers = self._source._rows_per_batch, self._source._workers
        if self._ended(self._position):
            raise StopIteration
        parts, after = self._take(self._position, rows_per_batch)
        if not parts:  # what was left is skipped
            raise StopIteration
        rows = Rows.joined(parts, rows_per_batch)
        host_rows = self._source._host_rows
        arrays, draws_BP, overflowed = self._source._assembler(
            rows.part(host_rows.start, host_rows.stop)
        )
        batch = Batch(
            arrays=arrays,
            sequences=len(rows.sequences_S),
            tokens=int(rows.lengths_S.sum(dtype=np.int64)),
            slots=rows_per_batch * self._planner.row_length,
            overflowed=overflowed,
            position=after,
            draws_BP=draws_BP,
        )
        # Only now, so that a batch that failed is tried again and not skipped.
        self._position = self._take(after, (workers - 1) * rows_per_batch)[1]
        return batch

    def get_state(self) -> dict[str, int]:
        return self._position.to_dict()

    def set_state(self, state: Mapping[str, int]) -> None:
        self._position = Position.from_dict(state)

    def close(self) -> None:
        super().close()
        self._is_closed = True

    def _take(self, position: Position, rows: int) -> tuple[list[Rows], Position]:
        """The next `rows` rows, fewer if the epochs end, and the position after them."""
        parts = []
        while rows and not self._ended(position):
            planned = self._plan(position)
            if position.row >= planned.num_rows:
                position = self._after(position, position.row, planned.num_rows)
                continue
            stop = min(planned.num_rows, position.row + rows)
            parts.append(planned.part(position.row, stop))
            rows -= stop - position.row
            position = self._after(position, stop, planned.num_rows)
        return parts, position

    def _ended(self, position: Position) -> bool:
        return self._source._epochs is not None and position.epoch >= self._source._epochs

    def _after(self, position: Position, row: int, rows_in_window: int) -> Position:
        if row < rows_in_window:
            return dataclasses.replace(position, row=row)
        if position.window + 1 < self._planner.num_windows:
            return Position(position.epoch, position.window + 1)
        return Position(position.epoch + 1)

    def _plan(self, position: Position) -> Rows:
        epoch, window = position.epoch, position.window
        if self._planned is None or self._planned[:2] != (epoch, window):
            if window >= self._planner.num_windows:
                raise _not_of_this_data(position, f"{self._planner.num_windows} windows an epoch")
            self._planned = (epoch, window, self._planner.plan(epoch, window))
        planned = self._planned[2]
        # Where sequences are skipped, a window may have fewer rows than when the position was
        # saved, or none.
        if position.row >= planned.num_rows and not self._planner.dataset.missing:
            raise _not_of_this_data(position, f"{planned.num_rows} rows in that window")
        return planned


@dataclasses.dataclass(frozen=True)
class _Assembler:
    """Reads and masks the sequences of some rows, and lays them out as a batch's arrays."""

    dataset: TokenDataset | Mixture
    row_length: int
    predictions: int
    mask: TokenMasking
    with_draws: bool

    def __call__(
        self, rows: Rows
    ) -> tuple[dict[str, np.ndarray], UInt64[np.ndarray, "B P"] | None, int]:
        """`Batch`'s arrays and draws, and how many chosen tokens overflowed their row."""
        pad_id = self.dataset.metadata.special_token_ids.pad
        tokens_T, lengths_S = self.dataset.gather(rows.sequences_S)
        masked_T, chosen_T, draws_T = self.mask(
            tokens_T, lengths_S, rows.sequences_S, rows.epochs_S
        )
        places_T, segments_T = rows.layout(self.row_length)
        slots_N, kept_N = self._slots(places_T[chosen_T], rows.num_rows)
        overflowed_N = np.flatnonzero(chosen_T)[~kept_N]
        masked_T[overflowed_N] = tokens_T[overflowed_N]

        shape_BL = (rows.num_rows, self.row_length)
        shape_BP = (rows.num_rows, self.predictions)
        predicted_N = np.flatnonzero(chosen_T)[kept_N]
        arrays = {
            "tokens_BL": scattered(shape_BL, places_T, masked_T, pad_id),
            "segment_ids_BL": scattered(shape_BL, places_T, segments_T),
            "positions_BP": scattered(shape_BP, slots_N, places_T[predicted_N] % self.row_length),
            "labels_BP": scattered(shape_BP, slots_N, tokens_T[predicted_N]),
            "weights_BP": scattered(shape_BP, slots_N, 1.0, dtype=np.float32),
        }
        draws_BP = None
        if self.with_draws:
            draws_BP = scattered(shape_BP, slots_N, draws_T[predicted_N], dtype=np.uint64)
        return arrays, draws_BP, len(overflowed_N)

    def _slots(
        self, places_N: Int64[np.ndarray, "N"], rows: int
    ) -> tuple[Int64[np.ndarray, "K"], Bool[np.ndarray, "N"]]:
        """Flat prediction slots for the chosen places that fit in their row, and which those are.

        The first P of a row get a slot. Later ones are not predicted, which happens in fewer than
        one row in a thousand.
        """
        row_N = places_N // self.row_length
        first_of_row_B = np.searchsorted(row_N, np.arange(rows))
        rank_N = np.arange(len(row_N)) - first_of_row_B[row_N]
        kept_N = rank_N < self.predictions
        return (row_N * self.predictions + rank_N)[kept_N], kept_N


def scattered(
    shape: tuple[int, int],
    places_N: Int64[np.ndarray, "N"],
    values_N: np.ndarray | float,
    empty: int = 0,
    dtype: type = np.int32,
) -> np.ndarray:
    """An array that holds the values at their flat places and `empty` elsewhere."""
    array = np.full(shape, empty, dtype)
    array.reshape(-1)[places_N] = values_N
    return array


def _word_starts(metadata: DatasetMetadata) -> "WordStarts":
    # Imported here, as without whole words nothing of a run needs the library that tokenizes.
    from mosaicbert_jax.text.tokenizer import load_tokenizer
    from mosaicbert_jax.text.word_starts import word_starts

    return word_starts(load_tokenizer(metadata.tokenizer_path), metadata.padded_vocab_size)


def _check_row_length(row_length: int, max_seq_len: int) -> None:
    if row_length < max_seq_len:
        raise UserError(
            f"row_length {row_length} is below the data set's max_seq_len {max_seq_len}, and a "
            f"sequence is never cut: set it to {max_seq_len} or more, or prepare the data again "
            "with a smaller max_seq_len"
        )


def _check_rows_per_batch(rows_per_batch: int, process_index: int, process_count: int) -> None:
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} isn't in 0 … {process_count - 1}")
    if rows_per_batch < 1 or rows_per_batch % process_count:
        nearest = max(1, round(rows_per_batch / process_count)) * process_count
        raise UserError(
            f"rows_per_batch {rows_per_batch} can't be divided evenly among {process_count} "
            f"hosts: {nearest} can"
        )


def _not_of_this_data(position: Position, found: str) -> UserError:
    return UserError(
        f"data position {position.to_dict()} doesn't exist, there are only {found}: resume with "
        "the data set, seed, row_length and window_size that the checkpoint was made with"
    )
