"""Instructions of NVIDIA GPUs that Pallas' Triton lowering doesn't choose by itself.

XLA's Triton pipeline gives exponentials code for denormal numbers (a comparison and two products
each) and never contracts a product and a sum. Within softmax neither is wanted: a weight below
2^-126 is 0, and one rounding is better than two.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float


def exp2(x: Float[Array, "*s"], *, interpret: bool) -> Float[Array, "*s"]:
    """2^x in float32 to 2 units in the last place; denormal results are 0, NaN stays NaN.

    Args:
      interpret: compute it by JAX, whose interpreter knows no PTX.
    """
    if interpret:
        return jnp.exp2(x)
    return _elementwise("ex2.approx.ftz.f32 $0, $1;", x)


def fma(
    a: Float[Array, "*s"], b: Float[Array, "*s"], c: Float[Array, "*s"], *, interpret: bool
) -> Float[Array, "*s"]:
    """a · b + c in float32 with one rounding, after broadcasting; with two if interpreted."""
    if interpret:
        return a * b + c
    return _elementwise("fma.rn.ftz.f32 $0, $1, $2, $3;", *jnp.broadcast_arrays(a, b, c))


def _elementwise(instruction: str, *operands: jax.Array) -> jax.Array:
    (result,) = plgpu.elementwise_inline_asm(
        instruction,
        args=operands,
        constraints="=f" + ",f" * len(operands),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(operands[0].shape, jnp.float32)],
    )
    return result
