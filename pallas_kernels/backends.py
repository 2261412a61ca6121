"""Which of a kernel's backends runs: the one asked for, or what suits the device.

Every kernel has "triton", Pallas kernels for NVIDIA GPUs of compute capability 8.0 or higher;
"xla", plain JAX for any device; and "interpret", the kernels of "triton" run by JAX's interpreter,
for tests. "auto" takes triton where it can serve, else xla, and logs once which and why.
"""

import contextlib
import contextvars
import dataclasses
import functools
import logging
from collections.abc import Iterator

import jax

BACKENDS = ("triton", "xla", "interpret")
DTYPES = ("float32", "bfloat16", "float16")  # of what "triton" computes with
LEAST_CAPABILITY = (8, 0)  # Ampere: bfloat16 in tensor cores, asynchronous copies


@dataclasses.dataclass(frozen=True)
class Target:
    """The device that a program is for.

    Attributes:
      platform: "gpu", "cpu" or "tpu".
      device_kind: the device's name, such as "NVIDIA H100 80GB HBM3".
      compute_capability: of an NVIDIA GPU, such as (9, 0); None for any other device.
    """

    platform: str
    device_kind: str
    compute_capability: tuple[int, int] | None = None

    @classmethod
    def of(cls, device: jax.Device) -> "Target":
        """A device, which need not be here: one of a topology will do."""
        # AMD's say "gfx90a" and the like.
        major, dot, minor = str(getattr(device, "compute_capability", "")).partition(".")
        known = device.platform == "gpu" and dot and major.isdigit() and minor.isdigit()
        capability = (int(major), int(minor)) if known else None
        return cls(device.platform, device.device_kind, capability)

    @property
    def why_not_triton(self) -> str | None:
        """Why Pallas' Triton kernels can't run there, or None."""
        if self.platform != "gpu":
            return f"the device is a {self.platform}, and triton's kernels are for NVIDIA GPUs"
        if self.compute_capability is None:
            return f"{self.device_kind} is not an NVIDIA GPU of known compute capability"
        if self.compute_capability < LEAST_CAPABILITY:
            needed, found = (f"{a}.{b}" for a, b in (LEAST_CAPABILITY, self.compute_capability))
            return (
                f"triton's kernels need compute capability {needed}, {self.device_kind} has {found}"
            )
        return None


_compiling_for: contextvars.ContextVar[Target | None] = contextvars.ContextVar(
    "compiling_for", default=None
)


@contextlib.contextmanager
def compiling_for(device: jax.Device) -> Iterator[None]:
    """What is traced within is for this device, which need not be here, and not for JAX's own."""
    token = _compiling_for.set(Target.of(device))
    try:
        yield
    finally:
        _compiling_for.reset(token)


def target() -> Target:
    """Of `compiling_for`; else JAX's default device, unless the mesh in use is of other devices."""
    if (chosen := _compiling_for.get()) is not None:
        return chosen
    default = Target.of(jax.devices()[0])
    of_mesh = jax.sharding.get_abstract_mesh().abstract_device
    if of_mesh is None or of_mesh.device_kind == default.device_kind:
        return default
    return Target(of_mesh.platform, of_mesh.device_kind)


@functools.cache  # so that a choice is logged once
def choose_backend(
    kernel: str,
    backend: str,
    target: Target,
    why_not_triton: str | None,
    backends: tuple[str, ...] = BACKENDS,
) -> str:
    """The backend that runs.

    Args:
      kernel: the public function's name, for the log.
      backend: one of `backends`, or "auto".
      target: the device.
      why_not_triton: what of this call the kernels can't do on any device.

    Raises:
      ValueError: a backend that does not exist, or one asked for by name that can't serve.
    """
    if backend not in ("auto", *backends):
        raise ValueError(f"backend {backend!r} is not one of auto, {', '.join(backends)}")
    if backend == "interpret" and why_not_triton:
        raise ValueError(f"backend 'interpret' can't serve: {why_not_triton}")
    why_not_triton = target.why_not_triton or why_not_triton
    if backend == "triton" and why_not_triton:
        raise ValueError(f"backend 'triton' can't serve: {why_not_triton}")
    if backend != "auto":
        return backend
    chosen = "xla" if why_not_triton else "triton"
    reason = why_not_triton or f"the device is a {target.device_kind}"
    logging.getLogger(__name__).info("%s: auto takes %s, as %s", kernel, chosen, reason)
    return chosen
