"""Finds the largest microbatch that fits the devices, by compiling."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mosaicbert_jax.data.masking import predictions_per_row
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.training import sharding
from mosaicbert_jax.training.memory import bytes_needed, device_memory, shown

AUTO = "auto"
MARGIN = 0.1  # of the memory, left free for what no program plans, such as fragmentation
_FIRST_TOKENS = 65_536  # of the first program: all of a device's share in the recipe on 8 GPUs


@dataclasses.dataclass(frozen=True)
class Search:
    """What a search for the largest microbatch found.

    Attributes:
      rows: of the largest that fits; None if not one row does.
      measured: bytes that the compiled step needs, by the rows of its microbatches.
      limit: bytes.
    """

    rows: int | None
    measured: dict[int, int]
    limit: int


def largest_that_fits(
    sizes: Sequence[int], bytes_of: Callable[[int], int], limit: int, first: int
) -> Search:
    """The largest of several microbatches whose step needs at most `limit` bytes.

    Memory is nearly linear in the rows. Two sizes are measured, then the one that the line through
    them predicts, and smaller ones only if that is too large after all. If the first is the largest
    of all and fits, no other is measured.

    Args:
      sizes: rows of the microbatches that there are to choose from.
      bytes_of: measures one; takes half a minute or more.
      first: the size to begin with, one of `sizes`.
    """
    measured: dict[int, int] = {}
    size: int | None = first
    while size is not None:
        measured[size] = bytes_of(size)
        size = _next(sorted(sizes), measured, limit)
    fitting = [rows for rows, needed in measured.items() if needed <= limit]
    return Search(max(fitting, default=None), measured, limit)


def _next(sizes: list[int], measured: dict[int, int], limit: int) -> int | None:
    """The size to measure now, or None if the largest is known."""
    fits = max((size for size, needed in measured.items() if needed <= limit), default=0)
    not_fitting = min((s for s, needed in measured.items() if needed > limit), default=math.inf)
    between = [size for size in sizes if fits < size < not_fitting]
    if not between or (fits and len(measured) > 2):
        return None
    if len(measured) == 1:
        (only,) = measured
        if fits:
            return max([size for size in between if size <= 4 * only], default=between[0])
        return min([size for size in between if 4 * size >= only], default=between[-1])
    # Through the two that lie nearest to what is sought.
    (low, at_low), (high, at_high) = sorted(sorted(measured.items())[:2])
    slope = max(at_high - at_low, 0) / (high - low)
    fitting = [size for size in between if at_low + slope * (size - low) <= limit]
    if not fitting:
        return None if fits else between[0]
    return fitting[-1]


def sizes_of(rows: int, row_shards: int) -> list[int]:
    """Into microbatches of how many rows a device's share of a batch divides."""
    here = rows // row_shards
    return [size for size in range(1, here + 1) if here % size == 0]


def first_size(sizes: Sequence[int], row_length: int) -> int:
    """Where a search on the device at hand begins."""
    return max((s for s in sizes if s * row_length <= _FIRST_TOKENS), default=min(sizes))


def abstract_batch(
    mesh: Mesh, rows: int, length: int, masking_rate: float, masking_unit: str = "token"
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a pretraining batch."""
    slots = predictions_per_row(length, masking_rate, masking_unit)
    columns = {
        "tokens_BL": (length, jnp.int32),
        "segment_ids_BL": (length, jnp.int32),
        "positions_BP": (slots, jnp.int32),
        "labels_BP": (slots, jnp.int32),
        "weights_BP": (slots, jnp.float32),
    }
    return {
        name: jax.ShapeDtypeStruct((rows, width), dtype, sharding=sharding.by_rows(mesh))
        for name, (width, dtype) in columns.items()
    }


def search(
    step_of: Callable[[int], jax.stages.Wrapped],
    state: Any,
    mesh: Mesh,
    *,
    rows: int,
    row_length: int,
    masking_rate: float,
    masking_unit: str,
    frozen: tuple[Any, ...],
    say: Callable[[str], None],
) -> int:
    """The rows of the largest microbatch that fits the devices at hand.

    Args:
      step_of: the training step with microbatches of so many rows.
      state: its first argument, as a tree of ShapeDtypeStruct.
      rows: of the global batch.
      frozen: the step's last arguments, abstract too.
      say: takes a line for the terminal.

    Raises:
      UserError: not one row fits.
    """
    everywhere = sharding.replicated(mesh)
    rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct((), key.dtype, sharding=everywhere)
    batch = abstract_batch(mesh, rows, row_length, masking_rate, masking_unit)

    def bytes_of(size: int) -> int:
        say(f"Choosing the microbatch: compiling for {size} rows of {row_length} tokens.")
        return bytes_needed(step_of(size).lower(state, batch, rate, key, *frozen).compile())

    row_shards = sharding.row_shards(mesh)
    size, why = choose(bytes_of, rows=rows, row_shards=row_shards, row_length=row_length)
    say(why)
    return size


def choose(
    bytes_of: Callable[[int], int], *, rows: int, row_shards: int, row_length: int
) -> tuple[int, str]:
    """The rows of the largest microbatch that fits the devices at hand, and why, in one line.

    Args:
      bytes_of: compiles the step with microbatches of so many rows; see `bytes_needed`.
      rows: of the global batch.
      row_shards: over how many devices they are divided.

    Raises:
      UserError: not one row fits.
    """
    memory = device_memory()
    sizes = sizes_of(rows, row_shards)
    limit = int((1 - MARGIN) * memory)
    found = largest_that_fits(sizes, bytes_of, limit, first_size(sizes, row_length))
    steps = ", ".join(f"{s} rows {shown(n)}" for s, n in sorted(found.measured.items()))
    room = f"{shown(memory)} a device less {MARGIN:.0%}"
    if found.rows is None:
        raise UserError(
            f"train.microbatch_tokens={AUTO}: not one row of {row_length} tokens fits {room}; the "
            f"compiled step needs: {steps}. Divide the model over devices with mesh.fsdp, or take "
            "shorter rows or a smaller model"
        )
    return found.rows, (
        f"microbatch: {found.rows} rows of {row_length} tokens a device "
        f"(train.microbatch_tokens={found.rows * row_length}), the most that divide its "
        f"{sizes[-1]} and fit {room}; compiled: {steps}"
    )
