"""Inputs for the tests of attention."""

import jax.numpy as jnp
import numpy as np


def packed_ids(rng, rows, length, longest):
    """Segment ids with padding at either end of some rows, and one row that is all padding."""
    ids_BL = np.zeros((rows, length), np.int32)
    for row in range(rows - 1):
        column, end = rng.integers(0, 3), length - rng.integers(0, 9)
        segment = 1
        while column < end:
            size = rng.integers(1, longest + 1)
            ids_BL[row, column : min(column + size, end)] = segment
            column, segment = column + size, segment + 1
    return jnp.asarray(ids_BL)


def normal(rng, *shape, dtype=jnp.float32):
    return jnp.asarray(rng.normal(size=shape), dtype)
