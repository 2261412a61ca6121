"""The plain, dense reference that every backend is tested against."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from pallas_kernels.alibi_attention.rope import rotated
from pallas_kernels.random_bits import dropout_scale, keep_mask


def attention(
    q_BLHD: Float[Array, "B L H D"],
    k_BLHD: Float[Array, "B L H D"],
    v_BLHD: Float[Array, "B L H D"],
    segment_ids_BL: Int[Array, "B L"],
    slopes_H: Float[Array, "H"],
    *,
    scale: float,
    rope_theta: float | None = None,
    window: int | None = None,
    dropout_rate: float = 0.0,
    dropout_keys_B: Key[Array, "B"] | None = None,
) -> Float[Array, "B L H D"]:
    """softmax(scale q·k - slope |i - j|, over the keys of the query's segment) · v, in float32."""
    length = q_BLHD.shape[1]
    if rope_theta is not None:
        q_BLHD, k_BLHD = rotated(q_BLHD, rope_theta), rotated(k_BLHD, rope_theta)
    # By default a GPU would round the operands to TF32.
    einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    scores_BHLL = scale * einsum(
        "bihd,bjhd->bhij", q_BLHD.astype(jnp.float32), k_BLHD.astype(jnp.float32)
    )
    column_L = jnp.arange(length)
    distance_LL = jnp.abs(column_L[:, None] - column_L[None, :])
    scores_BHLL -= slopes_H[:, None, None] * distance_LL
    same_BLL = segment_ids_BL[:, :, None] == segment_ids_BL[:, None, :]
    visible_BLL = same_BLL & (segment_ids_BL != 0)[:, :, None]
    if window is not None:
        visible_BLL &= distance_LL <= window
    # Padding queries see nothing; a softmax over no key would be NaN, in the gradient too.
    scores_BHLL = jnp.where(visible_BLL[:, None], scores_BHLL, -jnp.inf)
    highest_BHL1 = jnp.max(scores_BHLL, axis=-1, keepdims=True)
    highest_BHL1 = jax.lax.stop_gradient(jnp.where(jnp.isfinite(highest_BHL1), highest_BHL1, 0.0))
    exp_BHLL = jnp.exp(scores_BHLL - highest_BHL1)
    total_BHL1 = jnp.sum(exp_BHLL, axis=-1, keepdims=True)
    weights_BHLL = exp_BHLL / jnp.where(total_BHL1 == 0.0, 1.0, total_BHL1)
    if dropout_rate:
        counters_HLL = jnp.arange(slopes_H.shape[0] * length**2, dtype=jnp.uint32)
        counters_HLL = counters_HLL.reshape(-1, length, length)
        keep_BHLL = keep_mask(dropout_keys_B[:, None, None, None], counters_HLL, dropout_rate)
        weights_BHLL = jnp.where(keep_BHLL, weights_BHLL * dropout_scale(dropout_rate), 0.0)
    out_BLHD = einsum("bhij,bjhd->bihd", weights_BHLL, v_BLHD.astype(jnp.float32))
    return out_BLHD.astype(q_BLHD.dtype)
