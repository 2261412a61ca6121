"""The public function: it checks, and chooses a backend."""

import functools

from jaxtyping import Array, Float, Key

from pallas_kernels.backends import DTYPES, choose_backend, target
from pallas_kernels.geglu_linear import reference, triton


def geglu_linear(
    gate_up_BL2F: Float[Array, "B L 2 F"],
    kernel_FE: Float[Array, "F E"],
    *,
    activation: str = "gelu",
    dropout_rate: float = 0.0,
    dropout_keys_B: Key[Array, "B"] | None = None,
    divide: triton.Divide = triton.undivided,
    backend: str = "auto",
) -> Float[Array, "B L E"]:
    """dropout(GELU(gate) · up) @ kernel, [gate | up] = gate_up: a gated feed-forward's second half.

    GeGLU with the exact GELU, or SwiGLU with SiLU, x · sigmoid(x), in its place (Shazeer, 2020,
    arXiv:2002.05202). Differentiable in both. The linear map is part of it since its gradient needs
    the product: kept from forward by "xla", written again in backward by the kernels, which keep
    gate_up alone.

    Args:
      gate_up_BL2F: float32, bfloat16 or float16. The product is rounded to its dtype.
      kernel_FE: float32, cast to gate_up's dtype for the matrix product; its gradient is not.
      activation: "gelu" or "silu".
      dropout_rate: probability of dropping an element of the product.
      dropout_keys_B: a typed JAX key a row; needed if dropout_rate is not 0. The elements dropped
        are those of `drop_elements` on the product, whatever the backend.
      divide: for operands that a mesh divides, how the kernels are run on each device's part, while
        the linear map stays the compiler's: called as divide(call, *operands), it returns what
        call(first_column, whole_width, *operands) does on the parts, put together. first_column is
        the int32 index within F at which a part begins, whole_width F itself. The operands and
        results have two halves of F columns, (B, L, 2, F), one, (B, L, F), or none, (B,).
      backend: "triton", "xla", "interpret" or "auto"; see `pallas_kernels.backends`.

    Returns:
      out_BLE, in gate_up's dtype.

    Raises:
      ValueError: shapes that do not fit, dropout without keys, or a backend that is not there or
        can't serve.
    """
    width = kernel_FE.shape[0]
    if gate_up_BL2F.ndim != 4 or kernel_FE.ndim != 2 or gate_up_BL2F.shape[2:] != (2, width):
        given = f"{gate_up_BL2F.shape}, {kernel_FE.shape}"
        raise ValueError(f"gate_up and kernel must be (B, L, 2, F) and (F, E), not {given}")
    if activation not in reference.ACTIVATIONS:
        known = ", ".join(reference.ACTIVATIONS)
        raise ValueError(f"activation {activation!r} is not one of {known}")
    if dropout_rate and dropout_keys_B is None:
        raise ValueError("dropout_rate needs dropout_keys_B, one key a row")
    why_not_triton = reason_against_triton(width, gate_up_BL2F.dtype.name)
    chosen = choose_backend("geglu_linear", backend, target(), why_not_triton)
    backend_function = reference.geglu_linear
    if chosen != "xla":
        backend_function = functools.partial(
            triton.geglu_linear, divide=divide, interpret=chosen == "interpret"
        )
    return backend_function(
        gate_up_BL2F,
        kernel_FE,
        activation=activation,
        dropout_rate=dropout_rate,
        dropout_keys_B=dropout_keys_B,
    )


def reason_against_triton(width: int, dtype: str) -> str | None:
    """Why the Triton kernel cannot serve these operands; None where it can."""
    if not width or width % triton.WIDTH_STEP:
        return f"triton has multiples of {triton.WIDTH_STEP}, not {width}"
    if dtype not in DTYPES:
        return f"triton has {', '.join(DTYPES)}, not {dtype}"
    return None
