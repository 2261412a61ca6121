"""Sums of rows by index as a Pallas kernel for NVIDIA GPUs, through Triton, in a fixed order.

The rows are sorted by index, stably. A program has one index and some columns, and adds its rows
one tile after the other. Nothing is added atomically, so it is deterministic; and a row that a
quarter of all tokens hit, as [MASK]'s is, is read at the speed of one program and not of a queue.

Shape letters besides those of `api`: T rows added at once, W columns of a program.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

WIDTH_STEP = 32
_COLUMNS = 128  # W at most
_ROWS = 32  # T
_LAUNCH = plgpu.CompilerParams(num_warps=4, num_stages=1)


def sum_rows(
    rows_NE: Float[Array, "N E"],
    index_N: Int[Array, "N"],
    entries: int,
    *,
    interpret: bool = False,
) -> Float[Array, "V E"]:
    """See `api.sum_rows`."""
    count, width = rows_NE.shape
    index_N = index_N.astype(jnp.int32)
    sorted_N, order_N = jax.lax.sort_key_val(index_N, jnp.arange(count, dtype=jnp.int32))
    # Where each index begins among the sorted ones; behind the last one, where it ends.
    first_V1 = jnp.searchsorted(
        sorted_N, jnp.arange(entries + 1, dtype=jnp.int32), method="scan_unrolled"
    )
    columns = math.gcd(width, _COLUMNS)
    return pl.pallas_call(
        functools.partial(_kernel, count, columns),
        grid=(entries, width // columns),
        out_shape=jax.ShapeDtypeStruct((entries, width), jnp.float32),
        compiler_params=_LAUNCH,
        interpret=interpret,
        name="sum_rows",
    )(rows_NE, order_N, first_V1.astype(jnp.int32))


def _kernel(count, columns, rows_ref, order_ref, first_ref, sums_ref):
    entry = pl.program_id(0)
    column_W = pl.program_id(1) * columns + jnp.arange(columns)
    first, end = first_ref[entry], first_ref[entry + 1]

    def add(step, sum_TW):
        place_T = first + step * _ROWS + jnp.arange(_ROWS)
        there_T = place_T < end
        row_T = plgpu.load(order_ref.at[place_T], mask=there_T, other=0)
        rows = rows_ref.at[row_T[:, None], column_W[None, :]]
        rows_TW = plgpu.load(rows, mask=there_T[:, None], other=0.0)
        return sum_TW + rows_TW.astype(jnp.float32)

    steps = (end - first + _ROWS - 1) // _ROWS
    zeros_TW = jnp.zeros((_ROWS, columns), jnp.float32)
    sum_TW = jax.lax.fori_loop(0, steps, add, zeros_TW)
    sums_ref[entry, column_W] = sum_TW.sum(axis=0)
