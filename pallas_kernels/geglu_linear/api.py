"""The public function: it checks, and chooses a backend."""

import functools

from jaxtyping import Array, Float, Key

from pallas_kernels.geglu_linear import reference, triton
from pallas_kernels.platform import choose_backend, target_platform
from pallas_kernels.tokens import DTYPES

BACKENDS = ("triton", "xla", "interpret")


def geglu_linear(
    gate_up_BL2F: Float[Array, "B L 2*F"],
    kernel_FE: Float[Array, "F E"],
    *,
    dropout_rate: float = 0.0,
    dropout_keys_B: Key[Array, "B"] | None = None,
    row_axes: tuple[str, ...] = (),
    backend: str = "auto",
) -> Float[Array, "B L E"]:
    """dropout(GELU(gate) · up) @ kernel, [gate | up] = gate_up: a gated feed-forward's second half.

    GeGLU (Shazeer, 2020, arXiv:2002.05202) with the exact GELU. Differentiable in both. The linear
    map is part of it since its gradient needs the product: kept from forward by "xla", written
    again in backward by the kernels, which keep gate_up alone.

    Args:
      gate_up_BL2F: float32, bfloat16 or float16. The product is rounded to its dtype.
      kernel_FE: float32, cast to gate_up's dtype for the matrix product; its gradient is not.
      dropout_rate: probability of dropping an element of the product.
      dropout_keys_B: a typed JAX key a row; needed if dropout_rate is not 0. The elements dropped
        are those of `drop_elements` on the product, whatever the backend.
      row_axes: the axes of the mesh in use, if there is one, over which the rows are divided. Each
        device then runs the kernels on its own; what is plain JAX the compiler divides by itself.
      backend: "triton", Pallas kernels for NVIDIA GPUs from Ampere on; "xla", plain JAX for any
        device; "interpret", the kernels of "triton" by JAX's interpreter, for tests. "auto" takes
        triton on GPUs where it can serve, else xla, and logs once which and why.

    Returns:
      out_BLE, in gate_up's dtype.

    Raises:
      ValueError: shapes that do not fit, dropout without keys, or a backend that is not there or
        can't serve.
    """
    width = kernel_FE.shape[0]
    if gate_up_BL2F.ndim != 3 or kernel_FE.ndim != 2 or gate_up_BL2F.shape[-1] != 2 * width:
        given = f"{gate_up_BL2F.shape}, {kernel_FE.shape}"
        raise ValueError(f"gate_up and kernel must be (B, L, 2 F) and (F, E), not {given}")
    if dropout_rate and dropout_keys_B is None:
        raise ValueError("dropout_rate needs dropout_keys_B, one key a row")
    chosen = _choose(backend, target_platform(), width, gate_up_BL2F.dtype.name)
    backend_function = reference.geglu_linear
    if chosen != "xla":
        backend_function = functools.partial(
            triton.geglu_linear, row_axes=row_axes, interpret=chosen == "interpret"
        )
    return backend_function(
        gate_up_BL2F, kernel_FE, dropout_rate=dropout_rate, dropout_keys_B=dropout_keys_B
    )


@functools.cache  # so that a choice is logged once
def _choose(backend: str, platform: str, width: int, dtype: str) -> str:
    no_kernel = None
    if not width or width % triton.WIDTH_STEP:
        no_kernel = f"triton has multiples of {triton.WIDTH_STEP}, not {width}"
    elif dtype not in DTYPES:
        no_kernel = f"triton has {', '.join(DTYPES)}, not {dtype}"
    return choose_backend("geglu_linear", backend, BACKENDS, platform, no_kernel)
