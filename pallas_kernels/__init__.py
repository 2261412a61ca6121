"""Attention with ALiBi over packed rows, for JAX. Depends on jax alone.

Shape letters: B rows, L row length, H heads, D head size, Q blocks of a row.
"""

from pallas_kernels.alibi_attention.api import alibi_attention, alibi_attention_qkv
from pallas_kernels.alibi_attention.block_ranges import BlockRanges, block_ranges
from pallas_kernels.alibi_attention.slopes import alibi_slopes
from pallas_kernels.random_bits import keep_mask, random_bits

__all__ = [
    "BlockRanges",
    "alibi_attention",
    "alibi_attention_qkv",
    "alibi_slopes",
    "block_ranges",
    "keep_mask",
    "random_bits",
]
