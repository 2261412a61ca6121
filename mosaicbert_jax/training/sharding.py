"""The mesh of devices, and how batches and state lie on it.

Rows of a batch are divided over the axes data and fsdp. Parameters, gradients and optimizer state
are divided over fsdp and tensor, as in ZeRO's third stage (Rajbhandari et al., 2020,
arXiv:1910.02054) and PyTorch's FSDP: each device holds a part of every array, and a parameter is
gathered where it is used. Over tensor, attention's heads and the feed-forward's width are divided
too (modeling/layers.py), so that only those parts are gathered there.
"""

import functools
import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.modeling.on_mesh import ROW_AXES

AXES = ("data", "fsdp", "tensor")
# How a parameter is stored, by its name, the first that fits: the order of the axes that divide one
# of its axes; and whether the layer gathers it, to what tensor divides, or has it whole.
# In the first line tensor stands before, so that what it divides at use is gathered in one step.
_RULES = (
    (r"\.output\.kernel$", ("tensor", "fsdp"), True),
    (r"\.(qkv|input)\.kernel$", ("fsdp", "tensor"), True),
    (r"", ("fsdp", "tensor"), False),
)
# How each array of a batch lies on the mesh: divided by its rows, or whole on every device.
_INPUTS_BY_ROWS = ("tokens_BL", "segment_ids_BL", "token_type_ids_BL", "positions_BP")
_TARGETS_BY_ROWS = ("labels_BP", "weights_BP", "labels_BL", "weights_BL")
_WHOLE = ("first_positions_S", "labels_S", "weights_S")
BATCH_SPECS = dict.fromkeys(_INPUTS_BY_ROWS + _TARGETS_BY_ROWS, PartitionSpec(ROW_AXES))
BATCH_SPECS |= dict.fromkeys(_WHOLE, PartitionSpec())


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """All devices, as a mesh of the axes data, fsdp and tensor.

    Args:
      data, fsdp, tensor: devices along the axis; one of them may be -1, which is what is left.

    Raises:
      UserError: if their product is not the number of devices.
    """
    sizes = mesh_shape(jax.device_count(), data, fsdp, tensor)
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_shape(devices: int, data: int = -1, fsdp: int = 1, tensor: int = 1) -> tuple[int, ...]:
    """How many of the devices lie along each axis; see `make_mesh`."""
    sizes = [data, fsdp, tensor]
    given = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    known = int(np.prod([size for size in sizes if size != -1]))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"{given}: one may be -1, the others are numbers of devices")
    sizes = [devices // known if size == -1 else size for size in sizes]
    if np.prod(sizes) != devices:
        raise UserError(f"{given}, but there are {devices} devices, which these do not divide")
    return tuple(sizes)


def check_width(model: BertConfig, tensor: int) -> None:
    """Raises UserError where `tensor` devices can't share heads and the feed-forward's width."""
    for name in ("num_attention_heads", "intermediate_size"):
        size = getattr(model, name)
        if size % tensor:
            common = math.gcd(model.num_attention_heads, model.intermediate_size)
            fitting = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
            raise UserError(
                f"mesh.tensor={tensor} does not divide model.{name}={size}; take one of {fitting}"
            )


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The first axis divided over the mesh."""
    return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def row_shards(mesh: Mesh) -> int:
    """Over how many devices rows are divided."""
    return int(np.prod([mesh.shape[axis] for axis in ROW_AXES]))


def stored(mesh: Mesh, tree: Any) -> Any:
    """The shapes of a tree of parameters, or of a state, with the shardings they are stored in."""

    def one(path, x):
        spec = _stored_spec(mesh, _rule(path)[0], x.shape)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map_with_path(one, tree)


def at_use(params: Any) -> Any:
    """Stored parameters on their way into the model; their gradients are divided when summed."""
    if jax.sharding.get_abstract_mesh().empty:
        return params
    return jax.tree.map_with_path(lambda path, x: _enter(*_rule(path), x), params)


def _rule(path: tuple) -> tuple[tuple[str, str], bool]:
    """The order of the axes, and whether the layer gathers it."""
    name = "." + ".".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
    return next((axes, gathers) for pattern, axes, gathers in _RULES if re.search(pattern, name))


def _stored_spec(
    mesh: jax.sharding.AbstractMesh | Mesh, order: tuple[str, str], shape: tuple[int, ...]
) -> PartitionSpec:
    """The first axis of the shape that the devices divide; none: it is whole everywhere."""
    parts = math.prod(mesh.shape[axis] for axis in order)
    for axis, size in enumerate(shape):
        if size % parts == 0:
            return PartitionSpec(*(None,) * axis, order)
    return PartitionSpec()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _enter(order: tuple[str, str], as_stored: bool, x: jax.Array) -> jax.Array:
    return x if as_stored else jax.lax.with_sharding_constraint(x, PartitionSpec())


def _divide(order: tuple[str, str], as_stored: bool, _, gradient: jax.Array) -> tuple[jax.Array]:
    spec = _stored_spec(jax.sharding.get_abstract_mesh(), order, gradient.shape)
    return (jax.lax.with_sharding_constraint(gradient, spec),)


_enter.defvjp(lambda order, as_stored, x: (_enter(order, as_stored, x), None), _divide)


def host_part(mesh: Mesh) -> tuple[int, int]:
    """Which part of a batch's rows this process's devices hold, and how many parts there are.

    Raises:
      UserError: they hold no equal and connected part, as when tensor divides rows of hosts.
    """
    shards = row_shards(mesh)
    indices = by_rows(mesh).addressable_devices_indices_map((shards,)).values()
    first, *more = sorted({index[0].start or 0 for index in indices})
    held = 1 + len(more)
    if shards % held or first % held or more != list(range(first + 1, first + held)):
        sizes = ", ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in AXES)
        raise UserError(
            f"{sizes}: process {jax.process_index()} would hold the row parts {[first, *more]} of "
            f"{shards}; let mesh.tensor divide the devices of a host"
        )
    return first // held, shards // held


def place_everywhere(mesh: Mesh, value: np.ndarray | np.generic) -> jax.Array:
    """A value that all processes have, on all devices."""
    return jax.make_array_from_process_local_data(replicated(mesh), value)


def place_batch(mesh: Mesh, arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays from each host's rows; an array without rows is the same on every host.

    Raises:
      ValueError: an array that BATCH_SPECS does not declare.
    """
    if unknown := sorted(arrays.keys() - BATCH_SPECS):
        raise ValueError(f"{unknown}: not in BATCH_SPECS, which declares the arrays of a batch")
    return {
        name: jax.make_array_from_process_local_data(NamedSharding(mesh, BATCH_SPECS[name]), array)
        for name, array in arrays.items()
    }
