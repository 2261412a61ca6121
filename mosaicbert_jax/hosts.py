"""A run on several processes: joining, and agreeing on numbers.

A process a host, which has all its devices, or a process a device. All run the same program on the
same steps; whatever one decides by its own clock or its own files, the first decides for all.
"""

import hashlib
import os
import socket
import uuid
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from mosaicbert_jax.errors import UserError

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join(environment: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes of a run, if the environment names any.

    Either JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID,
    whose processes take all devices that they see; or what `srun` of SLURM sets, with one process a
    node, which has its GPUs, or one a GPU. Must come before anything else of JAX.

    Raises:
      UserError: not all of them are given, they contradict each other, or the others do not come.
    """
    address = environment.get(_ADDRESS)
    if not address:
        _join_by_slurm(environment)
        return
    count, index = environment.get(_COUNT), environment.get(_INDEX)
    numbers = [int(text) if text and text.isdecimal() else -1 for text in (index, count)]
    if not 0 <= numbers[0] < numbers[1]:
        raise UserError(
            f"{_ADDRESS}={address}, but {_COUNT}={count} and {_INDEX}={index}: set them to the "
            "number of processes and to the number of this one, from 0"
        )
    _initialize(address, numbers[1], numbers[0], cluster_detection_method="deactivate")


def _join_by_slurm(environment: Mapping[str, str]) -> None:
    tasks, nodes = (int(environment.get(f"SLURM_STEP_NUM_{of}", 1)) for of in ("TASKS", "NODES"))
    if tasks == 1:
        return  # no step of srun, or one of a single process
    if tasks > nodes:
        _initialize()  # JAX knows SLURM, and gives each process the GPU of its number
        return
    gpus = environment.get("SLURM_GPUS_ON_NODE")
    _initialize(local_device_ids=None if gpus is None else list(range(int(gpus))))


def _initialize(*arguments, **options) -> None:
    try:
        jax.distributed.initialize(*arguments, **options)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of this run do not find each other: {error}") from error


def on_one_machine() -> bool:
    """Whether all processes of the run share a machine, and so its files."""
    name = hashlib.sha256(f"{socket.gethostname()} {uuid.getnode()}".encode()).digest()
    mine = int.from_bytes(name[:4], "big")
    elsewhere = np.array([mine != agreed(float(mine))[0]], np.int32)
    return not summed(elsewhere).any()


def is_first() -> bool:
    """Whether this is the process that writes what is written once, and speaks."""
    return jax.process_index() == 0


def on_first(action: Callable[[], None]) -> None:
    """Runs `action` in the first process, and ends all if it raises a UserError or an OSError.

    Raises:
      UserError, OSError: that of the action in the first process.
      UserError: in the others, that it failed.
    """
    error = None
    if is_first():
        try:
            action()
        except (UserError, OSError) as raised:
            error = raised
    (failed,) = agreed(float(error is not None))
    if error is not None:
        raise error
    if failed:
        raise UserError("the first process stopped, and says why")


def agreed(*numbers: float) -> tuple[float, ...]:
    """The first process's numbers, to the bit, in all of them, which wait for each other."""
    if jax.process_count() == 1:
        return numbers
    # As words: an array of JAX has no 64 bits.
    words = np.array(numbers, np.float64).view(np.uint32)
    return tuple(np.asarray(multihost_utils.broadcast_one_to_all(words)).view(np.float64).tolist())


def summed(array: np.ndarray) -> np.ndarray:
    """The sum over the processes of an array that each has."""
    if jax.process_count() == 1:
        return array
    return multihost_utils.process_allgather(array).sum(axis=0)
