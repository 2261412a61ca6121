"""The kernels of a packed encoder's training step, for JAX alone.

Attention with ALiBi within segments, GeGLU and what follows it, LayerNorm of a residual sum, the
cross-entropy of a large vocabulary, and the gradient of an embedding table. Shape letters: B rows,
L row length, H heads, D head size, Q blocks of a row, E hidden size, F feed-forward size, N
predictions or tokens, V words.
"""

from pallas_kernels.alibi_attention.api import alibi_attention, alibi_attention_qkv
from pallas_kernels.alibi_attention.block_ranges import BlockRanges, block_ranges
from pallas_kernels.alibi_attention.slopes import alibi_slopes
from pallas_kernels.cross_entropy.api import cross_entropy_and_gradient
from pallas_kernels.geglu_linear.api import geglu_linear
from pallas_kernels.geglu_linear.reference import gelu
from pallas_kernels.matmul import matmul
from pallas_kernels.random_bits import drop_elements, keep_mask, random_bits
from pallas_kernels.residual_norm.api import residual_norm
from pallas_kernels.row_sums.api import sum_rows

__all__ = [
    "BlockRanges",
    "alibi_attention",
    "alibi_attention_qkv",
    "alibi_slopes",
    "block_ranges",
    "cross_entropy_and_gradient",
    "drop_elements",
    "geglu_linear",
    "gelu",
    "keep_mask",
    "matmul",
    "random_bits",
    "residual_norm",
    "sum_rows",
]
