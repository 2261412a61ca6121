"""Which kind of device a program is being built for."""

import jax


def target_platform() -> str:
    """ "gpu", "cpu" or "tpu": that of the mesh in use, which may be of devices that are not here,
    else that of JAX's default devices."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
