"""The public function: it checks, and chooses a backend."""

import functools

from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.backends import DTYPES, choose_backend, target
from pallas_kernels.cross_entropy import reference, triton


def cross_entropy_and_gradient(
    logits_NV: Float[Array, "N V"],
    labels_N: Int[Array, "N"],
    weights_N: Float[Array, "N"],
    *,
    backend: str = "auto",
) -> tuple[Float[Array, "N"], Bool[Array, "N"], Float[Array, "N V"]]:
    """-log softmax(logits)[label], and the gradient of its weighted sum, while the logits are read.

    For use within a rule of differentiation: it has none of its own. On a mesh it is for rows that
    lie on one device, as within `jax.shard_map`.

    Args:
      logits_NV: float32, bfloat16 or float16; all is computed in float32.
      labels_N: int32, in [0, V). The loss of another one is NaN.
      weights_N: float32.
      backend: "triton", "xla", "interpret" or "auto"; see `pallas_kernels.backends`.

    Returns:
      loss_N: float32, without the weights.
      is_correct_N: whether no logit is above the label's.
      d_logits_NV: (softmax - one at the label) · weight, in the logits' dtype.

    Raises:
      ValueError: shapes that do not fit, or a backend that is not there or can't serve.
    """
    if logits_NV.ndim != 2 or not labels_N.shape == weights_N.shape == logits_NV.shape[:1]:
        given = f"{logits_NV.shape}, {labels_N.shape} and {weights_N.shape}"
        raise ValueError(f"logits, labels and weights must be (N, V), (N,) and (N,), not {given}")
    why_not_triton = None
    if logits_NV.dtype.name not in DTYPES:
        why_not_triton = f"triton has {', '.join(DTYPES)}, not {logits_NV.dtype}"
    chosen = choose_backend("cross_entropy_and_gradient", backend, target(), why_not_triton)
    backend_function = reference.cross_entropy_and_gradient
    if chosen != "xla":
        backend_function = functools.partial(
            triton.cross_entropy_and_gradient, interpret=chosen == "interpret"
        )
    return backend_function(logits_NV, labels_N, weights_N)
