"""Batches of a fixed number of examples, packed into as few rows as they need.

The same packing as in pretraining, batch by batch: a row holds several examples as segments, and
the classifier reads each one's first token, so no computation goes to padding but to the ends of
rows. The number of rows is rounded up to one of a few, each a compiled program.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from mosaicbert_jax.data.masking import ORDER_BITS
from mosaicbert_jax.data.order import shuffled
from mosaicbert_jax.data.packing import Rows, pack
from mosaicbert_jax.data.pipeline import Batch, Position, scattered
from mosaicbert_jax.finetuning.encoded import EncodedExamples


def bucket(rows: int, shards: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, 24, … times `shards` that is at least `rows`."""
    needed, power = -(-rows // shards), 1
    while 2 * power <= needed:
        power *= 2
    least = next(n for n in (power, power + power // 2, 2 * power) if n >= needed)
    return least * shards


def packed_batch(
    examples: EncodedExamples,
    indices_S: Int[np.ndarray, "S"],
    *,
    size: int,
    row_length: int,
    shards: int,
) -> tuple[dict[str, np.ndarray], Int[np.ndarray, "S"]]:
    """Some examples as the arrays of a batch, and the examples' indices in the batch's order.

    Args:
      indices_S: at most `size` of them.
      size: S of the batch; what is left over has weight 0.
      shards: what the number of rows is a multiple of.

    Returns:
      tokens_BL, segment_ids_BL, token_type_ids_BL (int32); first_positions_S (int32, flat),
      labels_S and weights_S (float32), or where words are labeled labels_BL and weights_BL.
    """
    packed = pack(examples.lengths(indices_S), row_length)
    indices_S = np.asarray(indices_S)[packed.order_S]
    lengths_S = examples.lengths(indices_S)
    rows = Rows(indices_S, lengths_S, np.zeros_like(indices_S), packed.row_starts_R)
    part = examples.part(indices_S)
    places_T, segments_T = rows.layout(row_length)
    shape_BL = (bucket(packed.num_rows, shards), row_length)
    arrays = {
        "tokens_BL": scattered(shape_BL, places_T, part.tokens_T, examples.pad_id),
        "segment_ids_BL": scattered(shape_BL, places_T, segments_T),
        "token_type_ids_BL": scattered(shape_BL, places_T, part.types_T),
    }
    if part.word_labels_T is not None:
        words_T = part.word_labels_T >= 0
        labels_T, is_word_T = np.maximum(part.word_labels_T, 0), words_T.astype(np.float32)
        arrays["labels_BL"] = scattered(shape_BL, places_T, labels_T)
        arrays["weights_BL"] = scattered(shape_BL, places_T, is_word_T, dtype=np.float32)
        return arrays, indices_S
    used, unused = len(indices_S), size - len(indices_S)
    firsts_S = places_T[part.starts_S[:-1]].astype(np.int32)
    arrays["first_positions_S"] = np.pad(firsts_S, (0, unused))
    arrays["labels_S"] = np.pad(part.labels_S, (0, unused))
    arrays["weights_S"] = (np.arange(size) < used).astype(np.float32)
    return arrays, indices_S


def training_batches(
    examples: EncodedExamples,
    position: Position,
    *,
    seed: int,
    size: int,
    row_length: int,
    shards: int,
) -> Iterator[Batch]:
    """Batches without end; the examples come in another order each epoch.

    Each batch has `size` examples; the last of an epoch is filled up with the first examples of the
    next. A position's `row` counts the examples of its epoch.
    """
    epoch_size = len(examples)
    taken = position.epoch * epoch_size + position.row
    while True:
        epochs_S, places_S = np.divmod(np.arange(taken, taken + size), epoch_size)
        indices_S = np.concatenate(
            [
                shuffled(places_S[epochs_S == epoch], epoch_size, seed, ORDER_BITS, int(epoch))
                for epoch in np.unique(epochs_S)
            ]
        )
        arrays, _ = packed_batch(
            examples, indices_S, size=size, row_length=row_length, shards=shards
        )
        taken += size
        yield Batch(
            arrays=arrays,
            sequences=size,
            tokens=int(examples.lengths(indices_S).sum()),
            slots=arrays["tokens_BL"].size,
            overflowed=None,
            position=Position(taken // epoch_size, 0, taken % epoch_size),
        )


def evaluation_batches(
    examples: EncodedExamples, *, size: int, row_length: int, shards: int
) -> Iterator[tuple[dict[str, np.ndarray], Int[np.ndarray, "S"]]]:
    """`packed_batch` of all examples, once."""
    all_S = np.arange(len(examples))
    for begin in range(0, len(examples), size):
        yield packed_batch(
            examples, all_S[begin : begin + size], size=size, row_length=row_length, shards=shards
        )
