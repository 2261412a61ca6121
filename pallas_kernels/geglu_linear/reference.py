"""The plain reference that the kernels are tested against, and that runs without them."""

import jax
from jaxtyping import Array, Float, Key

from pallas_kernels.matmul import matmul
from pallas_kernels.random_bits import drop_elements


def gelu(x: jax.Array) -> jax.Array:
    """GELU in its exact form, x Φ(x) with erf (Hendrycks and Gimpel, 2016, arXiv:1606.08415).

    Not jax.nn.gelu, whose erfc keeps a relative precision that x Φ(x) + residual cannot use and
    which costs an exponential more.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS = {"gelu": gelu, "silu": jax.nn.silu}


def geglu_linear(
    gate_up_BL2F: Float[Array, "B L 2 F"],
    kernel_FE: Float[Array, "F E"],
    *,
    activation: str = "gelu",
    dropout_rate: float = 0.0,
    dropout_keys_B: Key[Array, "B"] | None = None,
) -> Float[Array, "B L E"]:
    """See `api.geglu_linear`."""
    gate_BLF, up_BLF = gate_up_BL2F[:, :, 0], gate_up_BL2F[:, :, 1]
    product_BLF = ACTIVATIONS[activation](gate_BLF) * up_BLF
    if dropout_rate:
        product_BLF = drop_elements(product_BLF, dropout_keys_B, dropout_rate)
    return matmul(product_BLF, kernel_FE)
