"""GeGLU or SwiGLU with dropout, before a matrix product, as Pallas kernels through Triton.

Each array passes through the device's memory once a direction. Forward reads gate and up and writes
the product, which nothing keeps. Backward reads gate, up and the product's gradient, and writes
their gradients and the product again, for the gradient of the linear map's kernel. The mask is made
again from the rows' keys. The matrix products are the compiler's.

Shape letters besides those of `api`: N tokens of all rows, T tokens and W columns of a program.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Key

from pallas_kernels.matmul import gradient_of_input, gradient_of_kernel, matmul
from pallas_kernels.tokens import Tile, dropout_words

WIDTH_STEP = 64
_COLUMNS = 1024  # W at most
_ELEMENTS = 2048  # T · W: 8 a thread, 16 bytes of bfloat16
_LAUNCH = plgpu.CompilerParams(num_warps=8, num_stages=1)


# (call, *operands) -> what call(first_column, whole_width, *operands) gives; see `api`.
Divide = Callable[..., Any]


def undivided(call: Callable[..., Any], *operands: Any) -> Any:
    """Where all of the operands lie on one device."""
    return call(jnp.zeros((), jnp.int32), operands[0].shape[-1], *operands)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is known when the program is built.

    Attributes:
      activation: "gelu" or "silu".
      dropout_rate: 0 or more.
      divide: how the kernels are run on a mesh.
      interpret: run the kernels step by step with JAX's interpreter, on any platform.
    """

    activation: str
    dropout_rate: float
    divide: Divide
    interpret: bool


def geglu_linear(
    gate_up_BL2F: Float[Array, "B L 2 F"],
    kernel_FE: Float[Array, "F E"],
    *,
    activation: str = "gelu",
    dropout_rate: float = 0.0,
    dropout_keys_B: Key[Array, "B"] | None = None,
    divide: Divide = undivided,
    interpret: bool = False,
) -> Float[Array, "B L E"]:
    """See `api.geglu_linear`."""
    words = dropout_words(dropout_rate, dropout_keys_B)
    settings = Settings(activation, dropout_rate, divide, interpret)
    return _geglu_linear(settings, gate_up_BL2F, kernel_FE, words)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _geglu_linear(settings: Settings, gate_up_BL2F, kernel_FE, words):
    call = functools.partial(_product, settings)
    return matmul(settings.divide(call, gate_up_BL2F, *words), kernel_FE)


def _forward(settings: Settings, gate_up_BL2F, kernel_FE, words):
    out_BLE = _geglu_linear(settings, gate_up_BL2F, kernel_FE, words)
    return out_BLE, (gate_up_BL2F, kernel_FE, words)


def _backward(settings: Settings, saved, d_out_BLE):
    gate_up_BL2F, kernel_FE, words = saved
    d_product_BLF = gradient_of_input(d_out_BLE, kernel_FE)
    call = functools.partial(_gradient_and_product, settings)
    d_gate_up_BL2F, product_BLF = settings.divide(call, gate_up_BL2F, d_product_BLF, *words)
    return d_gate_up_BL2F, gradient_of_kernel(product_BLF, d_out_BLE, kernel_FE.dtype), None


_geglu_linear.defvjp(_forward, _backward)


def _product(settings: Settings, first_column, whole_width: int, gate_up_BL2F, *words):
    rows, length, _, width = gate_up_BL2F.shape
    shape = (rows, length, width)
    product_NF = pl.pallas_call(
        functools.partial(_forward_kernel, settings, whole_width, shape),
        grid=_grid(shape),
        out_shape=jax.ShapeDtypeStruct((rows * length, width), gate_up_BL2F.dtype),
        compiler_params=_LAUNCH,
        interpret=settings.interpret,
        name="geglu_forward",
    )(gate_up_BL2F.reshape(rows * length, 2 * width), first_column[None], *words)
    return product_NF.reshape(shape)


def _gradient_and_product(
    settings: Settings, first_column, whole_width: int, gate_up_BL2F, d_product_BLF, *words
):
    rows, length, width = shape = d_product_BLF.shape
    operands = (
        gate_up_BL2F.reshape(rows * length, 2 * width),
        d_product_BLF.reshape(rows * length, width),
    )
    d_gate_up_N2F, product_NF = pl.pallas_call(
        functools.partial(_backward_kernel, settings, whole_width, shape),
        grid=_grid(shape),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands],
        compiler_params=_LAUNCH,
        interpret=settings.interpret,
        name="geglu_backward",
    )(*operands, first_column[None], *words)
    return d_gate_up_N2F.reshape(gate_up_BL2F.shape), product_NF.reshape(shape)


def _columns_at_once(width: int) -> int:
    """A power of two that divides the width: no program has columns that are not there."""
    return math.gcd(width, _COLUMNS)


def _grid(shape: tuple[int, int, int]) -> tuple[int, int]:
    rows, length, width = shape
    columns = _columns_at_once(width)
    return pl.cdiv(rows * length, _ELEMENTS // columns), width // columns


def _tile(shape: tuple[int, int, int]) -> Tile:
    """The part of the product that this program is for."""
    columns = _columns_at_once(shape[2])
    tokens = _ELEMENTS // columns
    token_T = pl.program_id(0) * tokens + jnp.arange(tokens)
    return Tile(token_T, pl.program_id(1) * columns + jnp.arange(columns)[None, :], shape)


def normal_cdf_and_density(x_TW):
    """The normal distribution's Φ(x), to 3e-7, and density.

    1 - Φ(x) = density · polynomial(1 / (1 + c x)) for x >= 0: Abramowitz and Stegun, Handbook of
    Mathematical Functions, 7.1.26, there for erf. It shares its exponential with the density.
    """
    density_TW = jnp.exp2(x_TW * x_TW * (-0.5 * math.log2(math.e))) * (2 * math.pi) ** -0.5
    t_TW = 1.0 / (1.0 + (0.3275911 * 0.5**0.5) * jnp.abs(x_TW))
    tail_TW = 0.0
    for coefficient in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail_TW = (tail_TW + coefficient * (math.pi / 2) ** 0.5) * t_TW
    tail_TW = tail_TW * density_TW
    return jnp.where(x_TW < 0, tail_TW, 1.0 - tail_TW), density_TW


def _activation(settings: Settings, x_TW):
    """The activation's value and derivative."""
    if settings.activation == "silu":
        sigmoid_TW = 1.0 / (1.0 + jnp.exp(-x_TW))
        return x_TW * sigmoid_TW, sigmoid_TW * (1.0 + x_TW * (1.0 - sigmoid_TW))
    phi_TW, density_TW = normal_cdf_and_density(x_TW)
    return x_TW * phi_TW, phi_TW + x_TW * density_TW


def _rounded(x_TW, dtype):
    return x_TW.astype(dtype).astype(jnp.float32)


def _forward_kernel(settings, whole_width, shape, gate_up_ref, first_ref, *refs):
    *word_refs, product_ref = refs
    tile, dtype = _tile(shape), product_ref.dtype
    place = {"first_column": first_ref[0], "whole_width": whole_width}
    drop = tile.dropout(settings.dropout_rate, word_refs, dtype, **place)
    gate_TW, up_TW = tile.load(gate_up_ref), tile.load(gate_up_ref, shape[2])
    active_TW, _ = _activation(settings, gate_TW)
    tile.store(product_ref, drop(_rounded(active_TW * up_TW, dtype)))


def _backward_kernel(settings, whole_width, shape, gate_up_ref, d_product_ref, first_ref, *refs):
    *word_refs, d_gate_up_ref, product_ref = refs
    tile, dtype = _tile(shape), product_ref.dtype
    place = {"first_column": first_ref[0], "whole_width": whole_width}
    drop = tile.dropout(settings.dropout_rate, word_refs, dtype, **place)
    gate_TW, up_TW = tile.load(gate_up_ref), tile.load(gate_up_ref, shape[2])
    d_product_TW = drop(tile.load(d_product_ref))
    active_TW, slope_TW = _activation(settings, gate_TW)
    tile.store(d_gate_up_ref, d_product_TW * up_TW * slope_TW)
    tile.store(d_gate_up_ref, d_product_TW * active_TW, shape[2])
    tile.store(product_ref, drop(_rounded(active_TW * up_TW, dtype)))
