"""The public function: it checks, and chooses a backend."""

import functools

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from pallas_kernels.backends import DTYPES, choose_backend, target
from pallas_kernels.residual_norm import reference, triton


def residual_norm(
    x_BLE: Float[Array, "B L E"],
    residual_BLE: Float[Array, "B L E"],
    scale_E: Float[Array, "E"],
    bias_E: Float[Array, "E"] | None,
    *,
    x_bias_E: Float[Array, "E"] | None = None,
    epsilon: float,
    center: bool = True,
    norm_dtype: DTypeLike = jnp.float32,
    dropout_rate: float = 0.0,
    dropout_keys_B: Key[Array, "B"] | None = None,
    returns_sum: bool = False,
    backend: str = "auto",
) -> Float[Array, "B L E"] | tuple[Float[Array, "B L E"], Float[Array, "B L E"]]:
    """LayerNorm(dropout(x + x_bias) + residual) over E: what ends each half of a post-LN layer.

    y = (s - mean(s)) / sqrt(variance(s) + epsilon) * scale + bias, s = dropout(x + x_bias) +
    residual (Ba et al., 2016, arXiv:1607.06450), or RMSNorm: y = s / sqrt(mean(s²) + epsilon) *
    scale (Zhang and Sennrich, 2019, arXiv:1910.07467). Statistics are in float32. Differentiable in
    all arrays; the bias of the projection that x comes from is here, because its gradient is a sum
    over the tokens of what backward has in its registers.

    Args:
      x_BLE, residual_BLE: float32, bfloat16 or float16. The sum is rounded to their dtype.
      scale_E, bias_E: float32; None adds nothing.
      x_bias_E: float32, rounded to x's dtype, as is the sum; None adds nothing.
      center: whether the mean is subtracted: LayerNorm does, RMSNorm does not.
      norm_dtype: what the sum, the scale, the bias and the result are rounded to besides.
      dropout_rate: probability of dropping an element of x.
      dropout_keys_B: a typed JAX key a row; needed if dropout_rate is not 0. The elements dropped
        are those of `drop_elements`, whatever the backend.
      returns_sum: whether the sum is a result too, for pre-LN layers. Both are written in one pass,
        and both of their gradients are read in one.
      backend: "triton", "xla", "interpret" or "auto"; see `pallas_kernels.backends`.

    Returns:
      y_BLE, or y_BLE and sum_BLE, in x's dtype.

    Raises:
      ValueError: shapes or dtypes that do not fit, dropout without keys, or a backend that is not
        there or can't serve.
    """
    if x_BLE.ndim != 3 or (x_BLE.shape, x_BLE.dtype) != (residual_BLE.shape, residual_BLE.dtype):
        given = f"{x_BLE.dtype}{x_BLE.shape}, {residual_BLE.dtype}{residual_BLE.shape}"
        raise ValueError(f"x and residual must have one dtype and shape (B, L, E), not {given}")
    width = x_BLE.shape[-1]
    vectors = [vector for vector in (scale_E, bias_E, x_bias_E) if vector is not None]
    if any(vector.shape != (width,) for vector in vectors):
        given = ", ".join(str(vector.shape) for vector in vectors)
        raise ValueError(f"scale and biases must be ({width},), the last axis of x, not {given}")
    if dropout_rate and dropout_keys_B is None:
        raise ValueError("dropout_rate needs dropout_keys_B, one key a row")
    norm_dtype = jnp.dtype(norm_dtype)
    why_not_triton = reason_against_triton(width, x_BLE.dtype.name, norm_dtype.name)
    chosen = choose_backend("residual_norm", backend, target(), why_not_triton)
    backend_function = reference.residual_norm
    if chosen != "xla":
        backend_function = functools.partial(
            triton.residual_norm, returns_sum=returns_sum, interpret=chosen == "interpret"
        )
    y_BLE, sum_BLE = backend_function(
        x_BLE,
        residual_BLE,
        scale_E,
        bias_E,
        x_bias_E=x_bias_E,
        epsilon=epsilon,
        center=center,
        norm_dtype=norm_dtype,
        dropout_rate=dropout_rate,
        dropout_keys_B=dropout_keys_B,
    )
    return (y_BLE, sum_BLE) if returns_sum else y_BLE


def reason_against_triton(width: int, dtype: str, norm_dtype: str) -> str | None:
    """Why the Triton kernel cannot serve these operands; None where it can."""
    if width % triton.WIDTH_STEP or not 0 < width <= triton.WIDEST:
        return f"triton has multiples of {triton.WIDTH_STEP} up to {triton.WIDEST}, not {width}"
    if dtype not in DTYPES:
        return f"triton has {', '.join(DTYPES)}, not {dtype}"
    if norm_dtype not in ("float32", dtype):
        return f"triton normalizes {dtype} as float32 or {dtype}, not {norm_dtype}"
    return None
