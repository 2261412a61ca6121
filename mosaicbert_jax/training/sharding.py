"""The mesh of devices, and how batches and state lie on it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.modeling.layers import ROW_AXES


def make_mesh(data: int) -> Mesh:
    """A mesh with the axis `data`, over which the rows of a batch are divided.

    Args:
      data: number of devices; -1 means all.

    Raises:
      UserError: if it is not the number of devices there are.
    """
    devices = jax.device_count()
    data = devices if data == -1 else data
    if data != devices:
        raise UserError(f"mesh.data={data}, but there are {devices} devices; use {devices} or -1")
    return jax.make_mesh((data,), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The first axis divided over the mesh."""
    return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def row_shards(mesh: Mesh) -> int:
    """Over how many devices rows are divided."""
    return int(np.prod([mesh.shape[axis] for axis in ROW_AXES]))


def place_batch(mesh: Mesh, arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays from each host's rows; what has no rows, such as labels_S, is everywhere."""
    return {
        name: jax.make_array_from_process_local_data(
            by_rows(mesh) if name.rpartition("_")[2].startswith("B") else replicated(mesh), array
        )
        for name, array in arrays.items()
    }
