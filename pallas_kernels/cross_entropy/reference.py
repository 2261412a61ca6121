"""The plain reference that the kernel is tested against, and that runs without it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def cross_entropy_and_gradient(
    logits_NV: Float[Array, "N V"],
    labels_N: Int[Array, "N"],
    weights_N: Float[Array, "N"],
) -> tuple[Float[Array, "N"], Bool[Array, "N"], Float[Array, "N V"]]:
    """See `api.cross_entropy_and_gradient`."""
    dtype, logits_NV = logits_NV.dtype, logits_NV.astype(jnp.float32)
    labels_N1, weights_N1 = labels_N[:, None], weights_N[:, None]
    highest_N1 = jnp.max(logits_NV, axis=-1, keepdims=True)
    exp_NV = jnp.exp(logits_NV - highest_N1)
    total_N1 = jnp.sum(exp_NV, axis=-1, keepdims=True)
    # What is outside of the vocabulary is NaN; a negative label would count from its end.
    known_N1 = jnp.where(labels_N1 < 0, logits_NV.shape[1], labels_N1)
    label_logit_N1 = jnp.take_along_axis(logits_NV, known_N1, axis=-1)
    loss_N1 = jnp.log(total_N1) + highest_N1 - label_logit_N1
    is_label_NV = jax.lax.broadcasted_iota(jnp.int32, logits_NV.shape, 1) == labels_N1
    d_logits_NV = exp_NV * (weights_N1 / total_N1) - jnp.where(is_label_NV, weights_N1, 0.0)
    # A maximum may ignore NaN, which the total has.
    is_correct_N1 = (label_logit_N1 >= highest_N1) & ~jnp.isnan(total_N1)
    return loss_N1[:, 0], is_correct_N1[:, 0], d_logits_NV.astype(dtype)
