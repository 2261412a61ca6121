"""How much memory a program needs, and how much there is."""

import os
import pathlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from mosaicbert_jax.errors import LESS_MEMORY, UserError

_SHARE_OF_HOST = 0.5  # of what is available there, for all devices of a CPU


def bytes_needed(compiled: jax.stages.Compiled) -> int:
    """Of one device's memory, while a program runs: its arguments, results and temporary arrays."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def device_memory() -> int:
    """Bytes that programs can have on each device, on the device that has the least.

    On a GPU what JAX has taken of it; on a CPU half of what the host has available, divided by its
    devices.
    """
    here = min(_memory_of(device) for device in jax.local_devices())
    if jax.process_count() == 1:
        return here
    return int(np.min(multihost_utils.process_allgather(np.int64(here // 2**20)))) * 2**20


def _memory_of(device: jax.Device) -> int:
    stats = device.memory_stats() or {}
    if device.platform != "cpu" and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return int(_SHARE_OF_HOST * available_on_host() / jax.local_device_count())


def available_on_host() -> int:
    """Bytes; all that is installed where the system does not tell what is available."""
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_host_holds(compiled: jax.stages.Compiled, doing: str) -> None:
    """Raises UserError for a program on a CPU that needs more memory than the host has left.

    The system would end the process without a word. A GPU's allocator raises an error by itself.

    Args:
      doing: what the program is for.
    """
    if jax.default_backend() != "cpu":
        return
    memory = compiled.memory_analysis()
    # Its arguments are there already.
    wanted = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    wanted *= jax.local_device_count()
    available = available_on_host()
    if wanted > available:
        raise UserError(
            f"{doing} needs {shown(wanted)} more memory, and this machine has {shown(available)} "
            f"left; {LESS_MEMORY}"
        )


def shown(size: int) -> str:
    """Bytes, for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
