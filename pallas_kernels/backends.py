"""Which of a kernel's backends runs: the one asked for, or what suits the device.

Every kernel has "triton", Pallas kernels for NVIDIA GPUs from Ampere on; "xla", plain JAX for any
device; and "interpret", the kernels of "triton" by JAX's interpreter, for tests. "auto" takes
triton on GPUs where it can serve, else xla, and logs once which and why.
"""

import functools
import logging

import jax

BACKENDS = ("triton", "xla", "interpret")
DTYPES = ("float32", "bfloat16", "float16")  # of what "triton" computes with


def target_platform() -> str:
    """ "gpu", "cpu" or "tpu": that of the mesh in use, which may be of devices that are not here,
    else that of JAX's default devices."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def target_device_kind() -> str:
    """Such as "NVIDIA H100 80GB HBM3", of the devices that `target_platform` speaks of."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (jax.devices()[0] if device is None else device).device_kind


@functools.cache  # so that a choice is logged once
def choose_backend(
    kernel: str,
    backend: str,
    platform: str,
    why_not_triton: str | None,
    backends: tuple[str, ...] = BACKENDS,
) -> str:
    """The backend that runs.

    Args:
      kernel: the public function's name, for the log.
      backend: one of `backends`, or "auto".
      platform: as of `target_platform`.
      why_not_triton: what of this call the kernels can't do on any device.

    Raises:
      ValueError: a backend that is not there, or one asked for by name that can't serve.
    """
    if backend not in ("auto", *backends):
        raise ValueError(f"backend {backend!r} is not one of auto, {', '.join(backends)}")
    if backend == "interpret" and why_not_triton:
        raise ValueError(f"backend 'interpret' can't serve: {why_not_triton}")
    if platform != "gpu":
        why_not_triton = f"the device is a {platform}, and triton's kernels are for NVIDIA GPUs"
    if backend == "triton" and why_not_triton:
        raise ValueError(f"backend 'triton' can't serve: {why_not_triton}")
    if backend != "auto":
        return backend
    chosen = "xla" if why_not_triton else "triton"
    reason = why_not_triton or f"the device is a {platform}, and nothing else is asked of it"
    logging.getLogger(__name__).info("%s: auto takes %s, as %s", kernel, chosen, reason)
    return chosen
