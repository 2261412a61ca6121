"""The plain reference that the kernels are tested against, and that runs without them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from pallas_kernels.random_bits import drop_elements


def residual_norm(
    x_BLE: Float[Array, "B L E"],
    residual_BLE: Float[Array, "B L E"],
    scale_E: Float[Array, "E"],
    bias_E: Float[Array, "E"] | None,
    *,
    x_bias_E: Float[Array, "E"] | None = None,
    epsilon: float,
    center: bool,
    norm_dtype: jnp.dtype,
    dropout_rate: float = 0.0,
    dropout_keys_B: Key[Array, "B"] | None = None,
) -> tuple[Float[Array, "B L E"], Float[Array, "B L E"]]:
    """See `api.residual_norm`. The steps are those of flax.nnx.LayerNorm, to the bit."""
    if x_bias_E is not None:
        x_BLE = x_BLE + x_bias_E.astype(x_BLE.dtype)
    if dropout_rate:
        x_BLE = drop_elements(x_BLE, dropout_keys_B, dropout_rate)
    x_BLE += residual_BLE
    sum_BLE = x_BLE.astype(norm_dtype)
    exact_BLE = sum_BLE.astype(jnp.promote_types(norm_dtype, jnp.float32))
    mean_BL1 = exact_BLE.mean(-1)[..., None] if center else 0.0
    # Not E[x²] - E[x]², which loses digits.
    variance_BL1 = jax.lax.square(exact_BLE - mean_BL1).mean(-1)[..., None]
    factor_BLE = jax.lax.rsqrt(variance_BL1 + epsilon) * scale_E.astype(norm_dtype)
    y_BLE = (sum_BLE - mean_BL1) * factor_BLE if center else sum_BLE * factor_BLE
    if bias_E is not None:
        y_BLE += bias_E.astype(norm_dtype)
    return y_BLE.astype(norm_dtype).astype(x_BLE.dtype), x_BLE
