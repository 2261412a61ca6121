"""Rotary position embeddings (Su et al., 2021, arXiv:2104.09864), as GPT-NeoX pairs the columns.

Column k of a head's first half and column k of its second half are a point in the plane, which is
turned by position · theta^(-2k / D). A product of a turned query and a turned key depends on the
distance of their positions alone, so that within a segment the columns of the row serve as
positions, wherever the segment begins. Shape letter besides those of `api`: K, half of a head.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@functools.cache
def rope_tables(
    length: int, head_size: int, theta: float
) -> tuple[Float[np.ndarray, "L K"], Float[np.ndarray, "L K"]]:
    """Cosines and sines for each column of a row, float32.

    The frequencies are rounded to float32, as in checkpoints' own code. The angles are not: of
    8,192 radians float32 has four decimals.
    """
    exponents_K = np.arange(0, head_size, 2) / head_size
    frequency_K = (1.0 / theta**exponents_K).astype(np.float32)
    angle_LK = np.arange(length)[:, None] * frequency_K.astype(np.float64)
    return np.cos(angle_LK).astype(np.float32), np.sin(angle_LK).astype(np.float32)


def rotate(first, second, cos, sin):
    """The halves of a head, turned; computed in float32 and not rounded."""
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    return first * cos - second * sin, second * cos + first * sin


def rotate_back(first, second, cos, sin):
    """The inverse of `rotate`, which is also its transpose: how a gradient passes through it."""
    return rotate(first, second, cos, -sin)


def rotated(x_BLHD: Float[Array, "B L H D"], theta: float) -> Float[Array, "B L H D"]:
    """Queries or keys, turned and rounded to their dtype."""
    _, length, _, head_size = x_BLHD.shape
    cos_L1K, sin_L1K = (x_LK[:, None] for x_LK in rope_tables(length, head_size, theta))
    first, second = jnp.split(x_BLHD, 2, axis=-1)
    halves = rotate(first, second, jnp.asarray(cos_L1K), jnp.asarray(sin_L1K))
    return jnp.concatenate(halves, axis=-1).astype(x_BLHD.dtype)
