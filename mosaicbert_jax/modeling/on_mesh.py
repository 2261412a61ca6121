"""Kernels on a mesh: each device runs them on its own part of the arrays.

The compiler can't divide a kernel, so what holds one is mapped over the devices by hand. Without a
mesh in use, these functions change nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# The axes of a mesh; every mesh in use has all three.
ROW_AXES = ("data", "fsdp")  # over which the rows of a batch are divided
FSDP_AXIS = "fsdp"
WIDTH_AXIS = "tensor"  # over which heads and the feed-forward's width are


def on_own_parts(call: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """`call` by each device for its part of the operands."""
    if jax.sharding.get_abstract_mesh().empty:
        return call
    return jax.shard_map(call, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def on_own_rows(call: Callable, divided: tuple, everywhere: tuple = ()) -> Any:
    """call(*divided, *everywhere), by each device for its rows of the first and of the results.

    Gradients of `everywhere` are added up over the rows. The devices along WIDTH_AXIS do the same
    work: the axis stays the compiler's.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return call(*divided, *everywhere)
    # Over axes of one device each, XLA can't add up gradients while another axis is its own.
    is_divided = any(mesh.shape[axis] > 1 for axis in ROW_AXES)
    rows, whole = PartitionSpec(ROW_AXES), PartitionSpec()
    mapped = jax.shard_map(
        call,
        in_specs=(rows,) * len(divided) + (whole,) * len(everywhere),
        out_specs=rows,
        axis_names=set(ROW_AXES if is_divided else mesh.axis_names),
        check_vma=False,
    )
    # Without jit, jax 0.10 can't map over some of the axes.
    return jax.jit(mapped)(*divided, *everywhere)


def on_own_columns(call: Callable, *operands: jax.Array) -> Any:
    """For `geglu_linear`: its kernels on each device's rows and its part of the width."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else mesh.shape[WIDTH_AXIS]
    whole_width = operands[0].shape[-1]

    def here(*operands):
        part = jax.lax.axis_index(WIDTH_AXIS) if parts > 1 else jnp.zeros((), jnp.int32)
        return call(part * (whole_width // parts), whole_width, *operands)

    if mesh.empty:
        return here(*operands)
    specs = {
        1: PartitionSpec(ROW_AXES),
        3: PartitionSpec(ROW_AXES, None, WIDTH_AXIS),
        4: PartitionSpec(ROW_AXES, None, None, WIDTH_AXIS),
    }
    whole = jax.eval_shape(lambda *x: call(jnp.zeros((), jnp.int32), whole_width, *x), *operands)
    out_specs = jax.tree.map(lambda x: specs[x.ndim], whole)
    return on_own_parts(here, tuple(specs[x.ndim] for x in operands), out_specs)(*operands)
