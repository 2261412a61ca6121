"""A tile of an array (B, L, E) and its dropout, shared by kernels that work token by token.

Shape letters: B rows, L row length, E width, N tokens of all rows, T tokens and W columns of
a tile.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Key, UInt32

from pallas_kernels.random_bits import drop_threshold, dropout_scale, mixed_bits, words_of


def dropout_words(
    rate: float, keys_B: Key[Array, "B"] | None
) -> tuple[()] | tuple[UInt32[Array, "B"], UInt32[Array, "B"]]:
    """What a kernel takes of the rows' keys: nothing if nothing is dropped."""
    if not rate:
        return ()
    words_B2 = words_of(keys_B)
    return words_B2[:, 0], words_B2[:, 1]


@dataclasses.dataclass(frozen=True)
class Tile:
    """T tokens by W columns of an array (B, L, E); those past its ends are not there."""

    token_T: jax.Array
    column_1W: jax.Array
    shape: tuple[int, int, int]  # B, L, E

    @property
    def within_TW(self):
        """Which elements are within the array."""
        rows, length, width = self.shape
        return (self.token_T < rows * length)[:, None] & (self.column_1W < width)

    def load(self, ref, first_column: int = 0):
        """Of (N, E) within a ref that may have columns before; float32, 0 where nothing is."""
        place = ref.at[self.token_T[:, None], first_column + self.column_1W]
        return plgpu.load(place, mask=self.within_TW, other=0.0).astype(jnp.float32)

    def store(self, ref, value_TW, first_column: int = 0) -> None:
        """Writes a tile of (N, E) into a ref that may have columns before."""
        place = ref.at[self.token_T[:, None], first_column + self.column_1W]
        plgpu.store(place, value_TW.astype(ref.dtype), mask=self.within_TW)

    def dropout(self, rate: float, word_refs, dtype, *, first_column=0, whole_width=None):
        """`drop_elements`, for any number of (T, W) in float32: they have one mask.

        Values are rounded where that function rounds in that dtype.

        Args:
          first_column, whole_width: where this array stands in the one that it is a part of.
        """
        if not word_refs:
            return lambda x_TW: x_TW
        rows, length, width = self.shape
        # Keys are fetched by one axis: by two, each thread would fetch them for all its elements.
        row_T = self.token_T // length
        there_T = row_T < rows
        first, second = (
            plgpu.load(ref.at[row_T], mask=there_T, other=0)[:, None] for ref in word_refs
        )
        place_T1 = (self.token_T % length * (whole_width or width) + first_column)[:, None]
        counters_TW = (place_T1 + self.column_1W).astype(jnp.uint32)
        kept_TW = mixed_bits(first, second, counters_TW) >= drop_threshold(rate)

        def drop(x_TW):
            scaled_TW = (x_TW * dropout_scale(rate)).astype(dtype).astype(jnp.float32)
            return jnp.where(kept_TW, scaled_TW, 0.0)

        return drop
