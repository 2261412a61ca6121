"""Rotary embeddings in place, as a Pallas kernel for NVIDIA GPUs, through Triton.

Rotating where attention's kernels load would turn each key once for each block of queries that
meets it: compiled, that doubles the forward kernel's instructions and makes the backward kernel
spill. One pass before reads and writes queries and keys once, in the memory where they are.

Shape letters besides those of `api`: K half of a head, T tokens of a program.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from pallas_kernels.alibi_attention.rope import rotate

_ELEMENTS = 2048  # T · K: 16 a thread of each half
_LAUNCH = plgpu.CompilerParams(num_warps=4, num_stages=1)


def rotate_in_place(
    operands: tuple[Array, ...],
    tables: tuple[Float[Array, "L K"], Float[Array, "L K"]],
    *,
    interpret: bool = False,
) -> tuple[Array, ...]:
    """The operands of `triton.attention` with queries and keys rotated.

    The compiler copies an operand first if anything else still needs it.

    Args:
      operands: (qkv_BL3HD,) or (q_BLHD, k_BLHD, v_BLHD).
      tables: cosines and sines; see `rope_tables`.
    """
    if len(operands) == 1:
        return (_rotate(operands[0], 2, tables, interpret),)
    q_BLHD, k_BLHD, v_BLHD = operands
    return *(_rotate(x_BLHD, 1, tables, interpret) for x_BLHD in (q_BLHD, k_BLHD)), v_BLHD


def _rotate(x: Array, parts: int, tables, interpret: bool) -> Array:
    """Of (B, L, 3, H, D) the first parts, or of (B, L, H, D) all."""
    rows, length, *_, heads, head_size = x.shape
    tokens = pl.next_power_of_2(max(1, min(_ELEMENTS // (head_size // 2), length)))
    flat_NC = x.reshape(rows * length, -1)
    rotated_NC = pl.pallas_call(
        functools.partial(_kernel, tokens, rows * length, length, head_size),
        grid=(pl.cdiv(rows * length, tokens), parts * heads),
        out_shape=jax.ShapeDtypeStruct(flat_NC.shape, flat_NC.dtype),
        input_output_aliases={0: 0},
        compiler_params=_LAUNCH,
        interpret=interpret,
        name="rotate_in_place",
    )(flat_NC, *tables)
    return rotated_NC.reshape(x.shape)


def _kernel(tokens, all_tokens, length, head_size, x_ref, cos_ref, sin_ref, rotated_ref):
    token_T1 = (pl.program_id(0) * tokens + jnp.arange(tokens))[:, None]
    half_1K = jnp.arange(head_size // 2)[None, :]
    there_TK = (token_T1 < all_tokens) & (half_1K >= 0)

    def load(ref, row_T1, first_column):
        place = ref.at[row_T1, first_column + half_1K]
        return plgpu.load(place, mask=there_TK, other=0.0)

    columns = [pl.program_id(1) * head_size + half * (head_size // 2) for half in range(2)]
    first_TK, second_TK = (load(x_ref, token_T1, column) for column in columns)
    cos_TK, sin_TK = (load(ref, token_T1 % length, 0) for ref in (cos_ref, sin_ref))
    halves = rotate(first_TK, second_TK, cos_TK, sin_TK)
    for half_TK, column in zip(halves, columns, strict=True):
        place = rotated_ref.at[token_T1, column + half_1K]
        plgpu.store(place, half_TK.astype(rotated_ref.dtype), mask=there_TK)
