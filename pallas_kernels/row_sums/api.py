"""The public function: it checks, and chooses a backend."""

import functools

from jaxtyping import Array, Float, Int

from pallas_kernels.backends import DTYPES, choose_backend, target
from pallas_kernels.row_sums import reference, triton


def sum_rows(
    rows_NE: Float[Array, "N E"], index_N: Int[Array, "N"], entries: int, *, backend: str = "auto"
) -> Float[Array, "V E"]:
    """sums[v] = sum of rows[n] over the n with index[n] = v: the gradient of a lookup's table.

    For use within a rule of differentiation: it has none of its own. The kernels add in a fixed
    order, so equal inputs give equal bits; "xla" does so on CPUs, and on GPUs adds atomically, in
    any order.

    Args:
      rows_NE: float32, bfloat16 or float16; added in float32.
      index_N: int32, in [0, entries); rows with another index are not added anywhere.
      entries: V.
      backend: "triton", "xla", "interpret" or "auto"; see `pallas_kernels.backends`.

    Returns:
      sums_VE: float32.

    Raises:
      ValueError: shapes that do not fit, or a backend that does not exist or can't serve.
    """
    if rows_NE.ndim != 2 or index_N.shape != rows_NE.shape[:1]:
        given = f"{rows_NE.shape} and {index_N.shape}"
        raise ValueError(f"rows and index must be (N, E) and (N,), not {given}")
    width = rows_NE.shape[1]
    why_not_triton = None
    if not width or width % triton.WIDTH_STEP:
        why_not_triton = f"triton has multiples of {triton.WIDTH_STEP}, not {width}"
    elif rows_NE.dtype.name not in DTYPES:
        why_not_triton = f"triton has {', '.join(DTYPES)}, not {rows_NE.dtype}"
    chosen = choose_backend("sum_rows", backend, target(), why_not_triton)
    backend_function = reference.sum_rows
    if chosen != "xla":
        backend_function = functools.partial(triton.sum_rows, interpret=chosen == "interpret")
    return backend_function(rows_NE, index_N, entries)
