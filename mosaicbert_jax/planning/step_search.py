"""The step of a plan, compiled, and the largest microbatch that fits its GPU."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax

from mosaicbert_jax import BertConfig
from mosaicbert_jax.planning.compile_only import make_mesh
from mosaicbert_jax.planning.gpus import GPUS
from mosaicbert_jax.planning.profile import StepProfile, of_program
from mosaicbert_jax.planning.training_step import (
    Recipe,
    abstract_state,
    compile_training_step,
)
from mosaicbert_jax.pretraining.microbatch import largest_that_fits, sizes_of


@dataclasses.dataclass(frozen=True)
class Order:
    """What is to be compiled: one node's share of a step.

    Attributes:
      gpu: a name of GPUS.
      model: the fields of the BertConfig.
      rows: of the batch, on the node's devices together.
      length: tokens of a row.
      sequence_length: of those that a row holds.
      recipe: the fields of a Recipe.
      mesh: devices along data, fsdp and tensor.
      microbatch: rows a device takes at a time; None: the most that fit.
      limit: bytes of a device's memory that the step may take.
    """

    gpu: str
    model: dict[str, Any]
    rows: int
    length: int
    sequence_length: int
    recipe: dict[str, Any]
    mesh: tuple[int, int, int]
    microbatch: int | None
    limit: int


def compiled(order: Order, shown: Callable[[str], AbstractContextManager[None]]) -> dict[str, Any]:
    """The search, and the profile of the step that the plan is for; all as a JSON record.

    That step has the microbatch of the order, or the largest that fits.

    Args:
      shown: a context manager that shows what is being done.

    Raises:
      UserError: a model that cannot be divided so, or of which not one row fits.
    """
    gpu, model = GPUS[order.gpu], BertConfig.from_fields(order.model)
    data, fsdp, tensor = order.mesh
    shards = data * fsdp
    sizes = sizes_of(order.rows, shards)
    recipe = Recipe(**order.recipe)
    state = abstract_state(model, make_mesh(gpu, *order.mesh), recipe)
    profiles: dict[int, StepProfile] = {}

    def bytes_of(rows: int) -> int:
        doing = (
            f"Compiling program {len(profiles) + 1} of at most 3, {rows} rows of {order.length} "
            f"tokens on each of {data * fsdp * tensor} x {gpu.name}"
        )
        microbatches = sizes[-1] // rows
        with shown(doing):
            program = compile_training_step(
                gpu,
                model,
                rows=order.rows,
                length=order.length,
                recipe=recipe,
                microbatches=microbatches,
                data=data,
                fsdp=fsdp,
                tensor=tensor,
            )
            profiles[rows] = of_program(
                program,
                state,
                gpu=gpu,
                rows=rows,
                microbatches=microbatches,
                mesh=order.mesh,
                sequence_length=order.sequence_length,
            )
        return profiles[rows].needed

    found = largest_that_fits(sizes, bytes_of, order.limit, order.microbatch or sizes[-1])
    planned = order.microbatch or found.rows or min(profiles)
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "largest": found.rows,
        "measured": {str(rows): size for rows, size in sorted(found.measured.items())},
        "profile": profiles[planned].to_dict(),
    }
