"""Ranges of blocks of a row that share a segment."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pallas_kernels.alibi_attention.launch import RANGE_BLOCK
from pallas_kernels.backends import target


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockRanges:
    """For each block of a row, the blocks of the same row that it must look at.

    Attributes:
      lower_BQ: int32, the first block that shares a segment with block Q.
      upper_BQ: int32, one past the last. Equal to `lower_BQ` where block Q is all padding.
      block_size: tokens a block; static.

    Sharing a segment is mutual, so the same ranges serve queries looking for keys (forward, dq)
    and keys looking for queries (dk, dv).
    """

    lower_BQ: Int[Array, "B Q"]
    upper_BQ: Int[Array, "B Q"]
    block_size: int = dataclasses.field(metadata={"static": True})

    def of_blocks(
        self, block: int, inner_block: int, *, window: int | None = None
    ) -> tuple[Int[Array, "B I"], Int[Array, "B I"]]:
        """The bounds for each block of `block` tokens, counted in blocks of `inner_block`.

        Args:
          window: tokens on each side of a token that it looks at; None: its whole segment.

        Raises:
          ValueError: sizes that are not multiples of `block_size`.
        """
        if block % self.block_size or inner_block % self.block_size:
            raise ValueError(
                f"block ranges of {self.block_size} tokens don't divide blocks of {block} and "
                f"{inner_block}"
            )
        lower_BI, upper_BI = self._of_blocks(block, inner_block)
        if window is not None:
            first_I = jnp.arange(lower_BI.shape[1], dtype=jnp.int32) * block
            lower_BI = jnp.maximum(lower_BI, jnp.maximum(first_I - window, 0) // inner_block)
            upper_BI = jnp.minimum(upper_BI, (first_I + block - 1 + window) // inner_block + 1)
        return jnp.minimum(lower_BI, upper_BI), upper_BI

    def _of_blocks(self, block: int, inner_block: int):
        if block == inner_block == self.block_size:
            return self.lower_BQ, self.upper_BQ
        factor, inner_factor = block // self.block_size, inner_block // self.block_size
        rows, num_blocks = self.lower_BQ.shape
        # What is all padding must not widen the block that it is a part of.
        lower_BQ = jnp.where(self.lower_BQ == self.upper_BQ, num_blocks, self.lower_BQ)
        widths = ((0, 0), (0, -num_blocks % factor))
        lower_BQ = jnp.pad(lower_BQ, widths, constant_values=num_blocks)
        lower_BI = lower_BQ.reshape(rows, -1, factor).min(axis=-1)
        upper_BI = jnp.pad(self.upper_BQ, widths).reshape(rows, -1, factor).max(axis=-1)
        return lower_BI // inner_factor, -(-upper_BI // inner_factor)

    def of_size(self, block_size: int) -> "BlockRanges":
        """The ranges of larger blocks, as `block_ranges` would find them or slightly wider."""
        return BlockRanges(*self.of_blocks(block_size, block_size), block_size)


def default_block_size(length: int, platform: str) -> int:
    """Tokens a block for rows of `length` tokens: on a GPU, what divides every kernel's blocks."""
    return RANGE_BLOCK if platform == "gpu" else min(128, length)


def block_ranges(
    segment_ids_BL: Int[Array, "B L"], *, block_size: int | None = None
) -> BlockRanges:
    """Finds, once a step and for all layers, the key blocks that each query block must visit.

    Exact for packed rows, whose segment ids ascend and each stand in one piece. For any other
    arrangement the ranges may hold blocks that share nothing, and never miss one that does.

    Args:
      segment_ids_BL: int, 0 is padding. L need not be a multiple of block_size.
      block_size: tokens a block; None: what suits the platform.
    """
    if block_size is None:
        block_size = default_block_size(segment_ids_BL.shape[1], target().platform)
    blocks_BQW = pad_to_blocks(segment_ids_BL, block_size).reshape(
        segment_ids_BL.shape[0], -1, block_size
    )
    real_BQW = blocks_BQW != 0
    highest = jnp.iinfo(jnp.int32).max
    first_BQ = jnp.min(jnp.where(real_BQW, blocks_BQW, highest), axis=-1)
    last_BQ = jnp.max(jnp.where(real_BQW, blocks_BQW, -1), axis=-1)
    # An all-padding block has first > last and so overlaps nothing, itself included.
    overlap_BQK = (first_BQ[:, :, None] <= last_BQ[:, None, :]) & (
        first_BQ[:, None, :] <= last_BQ[:, :, None]
    )
    num_blocks = overlap_BQK.shape[-1]
    index_K = jnp.arange(num_blocks, dtype=jnp.int32)
    upper_BQ = jnp.max(jnp.where(overlap_BQK, index_K + 1, 0), axis=-1)
    lower_BQ = jnp.min(jnp.where(overlap_BQK, index_K, num_blocks), axis=-1)
    return BlockRanges(jnp.minimum(lower_BQ, upper_BQ), upper_BQ, block_size)


def pad_to_blocks(x_BL: jax.Array, block_size: int, axis: int = 1) -> jax.Array:
    """Pads `axis` with zeros to a multiple of block_size."""
    missing = -x_BL.shape[axis] % block_size
    if not missing:
        return x_BL
    widths = [(0, missing if a == axis else 0) for a in range(x_BL.ndim)]
    return jnp.pad(x_BL, widths)
