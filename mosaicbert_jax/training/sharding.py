"""The mesh of devices, and how batches and state lie on it.

Rows of a batch are divided over the axes data and fsdp. Parameters, gradients and optimizer state
are divided over fsdp and tensor, as in ZeRO's third stage (Rajbhandari et al., 2020,
arXiv:1910.02054) and PyTorch's FSDP: each device holds a part of every array, and a parameter is
gathered where it is used. Over tensor, attention's heads and the feed-forward's width are divided
too (modeling/layers.py), so that only those parts are gathered there.
"""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.modeling.layers import ROW_AXES

AXES = ("data", "fsdp", "tensor")
_PARTS = ("fsdp", "tensor")  # the axes over which a parameter is divided
_GATHERED_BY_LAYERS = ("qkv.kernel", "attention.output.kernel", "feed_forward")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """All devices, as a mesh of the axes data, fsdp and tensor.

    Args:
      data, fsdp, tensor: devices along the axis; one of them may be -1, which is what is left.

    Raises:
      UserError: if their product is not the number of devices.
    """
    sizes, devices = [data, fsdp, tensor], jax.device_count()
    given = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    known = int(np.prod([size for size in sizes if size != -1]))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"{given}: one may be -1, the others are numbers of devices")
    sizes = [devices // known if size == -1 else size for size in sizes]
    if np.prod(sizes) != devices:
        raise UserError(f"{given}, but there are {devices} devices, which these do not divide")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The first axis divided over the mesh."""
    return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def row_shards(mesh: Mesh) -> int:
    """Over how many devices rows are divided."""
    return int(np.prod([mesh.shape[axis] for axis in ROW_AXES]))


def stored_spec(mesh: jax.sharding.AbstractMesh | Mesh, shape: tuple[int, ...]) -> PartitionSpec:
    """How a parameter, its gradient and its moments are divided: the first axis that divides."""
    parts = int(np.prod([mesh.shape[axis] for axis in _PARTS]))
    for axis, size in enumerate(shape):
        if size % parts == 0:
            return PartitionSpec(*(None,) * axis, _PARTS)
    return PartitionSpec()


def stored(mesh: Mesh, tree: Any) -> Any:
    """The tree of shapes with the shardings that they are stored in."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, stored_spec(mesh, x.shape))
        ),
        tree,
    )


def at_use(params: Any) -> Any:
    """Stored parameters on their way into the model; their gradients are divided when summed.

    Those that a layer divides over tensor it gathers itself, to just that; the others are whole.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return params

    def one(path, x):
        name = ".".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        return _enter(any(part in name for part in _GATHERED_BY_LAYERS), x)

    return jax.tree.map_with_path(one, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _enter(as_stored: bool, x: jax.Array) -> jax.Array:
    return x if as_stored else jax.lax.with_sharding_constraint(x, PartitionSpec())


def _divide_gradient(as_stored: bool, _, gradient: jax.Array) -> tuple[jax.Array]:
    spec = stored_spec(jax.sharding.get_abstract_mesh(), gradient.shape)
    return (jax.lax.with_sharding_constraint(gradient, spec),)


_enter.defvjp(lambda as_stored, x: (_enter(as_stored, x), None), _divide_gradient)


def place_batch(mesh: Mesh, arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays from each host's rows."""
    sharding = by_rows(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in arrays.items()
    }
