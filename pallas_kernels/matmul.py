"""A matrix product by the compiler, with its gradients as matrix products."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


@jax.custom_vjp
def matmul(x_BLI: Float[Array, "... I"], kernel_IO: Float[Array, "I *O"]) -> Float[Array, "..."]:
    """x · kernel in x's dtype, with its two gradients written as the products that they are.

    The kernel may have several axes of outputs, (3, H, D) say, of which a mesh may divide any.

    JAX's own rule computes the kernel's gradient transposed and then transposes it, for which XLA's
    CPU compiler writes transposed copies of the activations. It also rounds that gradient to x's
    dtype; here it is computed in the kernel's, float32, in which microbatches are summed.
    """
    kernel_IO = kernel_IO.astype(x_BLI.dtype)
    return jnp.tensordot(x_BLI, kernel_IO, 1, precision=_precision(x_BLI.dtype))


def _precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """float32 in full: by default a GPU would round it to TF32."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def gradient_of_input(
    d_out_BLO: Float[Array, "..."], kernel_IO: Float[Array, "I *O"]
) -> Float[Array, "... I"]:
    """Of `matmul`, in d_out's dtype."""
    outer = d_out_BLO.shape[: d_out_BLO.ndim - kernel_IO.ndim + 1]
    d_out_NO = d_out_BLO.reshape(-1, *kernel_IO.shape[1:])
    outputs = tuple(range(1, kernel_IO.ndim))
    d_x_NI = jax.lax.dot_general(
        d_out_NO,
        kernel_IO.astype(d_out_NO.dtype),
        ((outputs, outputs), ((), ())),
        precision=_precision(d_out_NO.dtype),
    )
    return d_x_NI.reshape(*outer, -1)


def gradient_of_kernel(
    x_BLI: Float[Array, "... I"], d_out_BLO: Float[Array, "..."], dtype: DTypeLike
) -> Float[Array, "I *O"]:
    """Of `matmul`, in the dtype asked for: the kernel's."""
    x_NI = x_BLI.reshape(-1, x_BLI.shape[-1])
    d_out_NO = d_out_BLO.reshape(x_NI.shape[0], *d_out_BLO.shape[x_BLI.ndim - 1 :])

    def product(x_NI, d_out_NO):
        return jax.lax.dot_general(
            x_NI,
            d_out_NO,
            (((0,), (0,)), ((), ())),
            precision=_precision(x_NI.dtype),
            preferred_element_type=dtype,
        )

    if x_NI.dtype == dtype:
        return product(x_NI, d_out_NO)
    # XLA's CPU compiler may leave a product of bfloat16 with a float32 result, which its runtime
    # then refuses. Converted before, it is the same product.
    return jax.lax.platform_dependent(
        x_NI,
        d_out_NO,
        cpu=lambda x_NI, d_out_NO: product(x_NI.astype(dtype), d_out_NO.astype(dtype)),
        default=product,
    )


def _forward(x_BLI, kernel_IO):
    return matmul(x_BLI, kernel_IO), (x_BLI, kernel_IO)


def _backward(saved, d_out_BLO):
    x_BLI, kernel_IO = saved
    d_x_BLI = gradient_of_input(d_out_BLO, kernel_IO)
    return d_x_BLI, gradient_of_kernel(x_BLI, d_out_BLO, kernel_IO.dtype)


matmul.defvjp(_forward, _backward)
