"""Attention with ALiBi over packed rows, GeGLU, and LayerNorm after a residual, for JAX alone.

Shape letters: B rows, L row length, H heads, D head size, Q blocks of a row, E hidden size, F
feed-forward size.
"""

from pallas_kernels.alibi_attention.api import alibi_attention, alibi_attention_qkv
from pallas_kernels.alibi_attention.block_ranges import BlockRanges, block_ranges
from pallas_kernels.alibi_attention.slopes import alibi_slopes
from pallas_kernels.geglu_linear.api import geglu_linear
from pallas_kernels.geglu_linear.reference import gelu
from pallas_kernels.matmul import matmul
from pallas_kernels.random_bits import drop_elements, keep_mask, random_bits
from pallas_kernels.residual_norm.api import residual_norm

__all__ = [
    "BlockRanges",
    "alibi_attention",
    "alibi_attention_qkv",
    "alibi_slopes",
    "block_ranges",
    "drop_elements",
    "geglu_linear",
    "gelu",
    "keep_mask",
    "matmul",
    "random_bits",
    "residual_norm",
]
