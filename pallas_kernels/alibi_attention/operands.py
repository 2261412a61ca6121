"""The operands of attention's kernels."""

from jaxtyping import Array, Float


def add_bias(
    qkv_BL3HD: Float[Array, "B L 3 H D"], bias_3HD: Float[Array, "3 H D"]
) -> Float[Array, "B L 3 H D"]:
    """Their sum, as XLA knows it for a part of the matrix product that qkv comes from."""
    rows, length, *inner = qkv_BL3HD.shape
    sum_BLO = qkv_BL3HD.reshape(rows, length, -1) + bias_3HD.reshape(-1).astype(qkv_BL3HD.dtype)
    return sum_BLO.reshape(rows, length, *inner)
