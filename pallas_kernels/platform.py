"""Which kind of device a program is being built for, and by which backend."""

import logging
from collections.abc import Sequence

import jax


def target_platform() -> str:
    """ "gpu", "cpu" or "tpu": that of the mesh in use, which may be of devices that are not here,
    else that of JAX's default devices."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def choose_backend(
    function: str, backend: str, backends: Sequence[str], platform: str, no_kernel: str | None
) -> str:
    """The backend asked for or, for "auto", triton where it can serve and else xla.

    Args:
      function: whose backend it is, for the log, which says what auto takes and why.
      backend: what was asked for: "auto" or one of `backends`.
      platform: as `target_platform` gives it.
      no_kernel: why triton has no kernel for what is given, even on a GPU; None if it has.

    Raises:
      ValueError: a backend that is not there or can't serve.
    """
    if backend not in ("auto", *backends):
        raise ValueError(f"backend {backend!r} is not one of auto, {', '.join(backends)}")
    if backend == "interpret" and no_kernel:
        raise ValueError(f"backend 'interpret' can't serve: {no_kernel}")
    why_not = no_kernel
    if platform != "gpu":
        why_not = f"the device is a {platform}, and triton's kernels are for NVIDIA GPUs"
    if backend == "triton" and why_not:
        raise ValueError(f"backend 'triton' can't serve: {why_not}")
    if backend != "auto":
        return backend
    chosen = "xla" if why_not else "triton"
    reason = why_not or f"the device is a {platform}, and nothing else is asked of it"
    logging.getLogger(__name__).info("%s: auto takes %s, as %s", function, chosen, reason)
    return chosen
