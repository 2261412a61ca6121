"""The plain reference that the kernel is tested against, and that runs without it."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def sum_rows(
    rows_NE: Float[Array, "N E"], index_N: Int[Array, "N"], entries: int
) -> Float[Array, "V E"]:
    """See `api.sum_rows`."""
    sums_VE = jnp.zeros((entries, rows_NE.shape[1]), jnp.float32)
    # A negative index counts from the end here: it is made one that is dropped.
    index_N = jnp.where(index_N < 0, entries, index_N)
    return sums_VE.at[index_N].add(rows_NE.astype(jnp.float32), mode="drop")
