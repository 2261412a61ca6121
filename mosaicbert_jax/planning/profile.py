"""A compiled training step in a few numbers: what a plan reckons with."""

import dataclasses
import math
from typing import Any, Self

import jax

from mosaicbert_jax.planning import collectives
from mosaicbert_jax.planning.collectives import Collective
from mosaicbert_jax.planning.compile_only import Program
from mosaicbert_jax.planning.traffic import Work, parse
from mosaicbert_jax.training.step import TrainState

# Products of (tokens, keys, hidden) in attention's kernels, which matrix products do not count.
ATTENTION_PRODUCTS = {"alibi_attention_forward": 2, "alibi_attention_backward": 7}


@dataclasses.dataclass(frozen=True)
class StepProfile:
    """One step on one device.

    Attributes:
      rows: of a microbatch.
      microbatches: one after the other.
      parameter_bytes, optimizer_bytes: as the device stores them; its gradients take as much as
        its parameters.
      other_lasting_bytes: the batch, and what else lives as long as the step.
      temporary_bytes: at the peak: activations, gradients, workspaces.
      executed_flops: of matrix products and attention's kernels.
      matmul_bytes: through device memory, in matrix products.
      row_bytes: outside them, in what grows with the rows.
      step_bytes, microbatch_bytes: the same in what does not, such as the update: once, and in each
        microbatch where there are several (those of all together).
      collectives: of the step.
    """

    rows: int
    microbatches: int
    parameter_bytes: int
    optimizer_bytes: int
    other_lasting_bytes: int
    temporary_bytes: int
    executed_flops: int
    matmul_bytes: int
    row_bytes: int
    step_bytes: int
    microbatch_bytes: int
    collectives: tuple[Collective, ...]

    @property
    def needed(self) -> int:
        """Bytes of the device's memory."""
        lasting = self.parameter_bytes + self.optimizer_bytes + self.other_lasting_bytes
        return lasting + self.temporary_bytes

    @property
    def bytes_outside(self) -> int:
        """Through device memory, outside matrix products and collectives."""
        return self.row_bytes + self.step_bytes + self.microbatch_bytes

    def to_dict(self) -> dict[str, Any]:
        """A JSON record."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """From `to_dict`'s record."""
        members = tuple(Collective(**one) for one in record["collectives"])
        return cls(**{**record, "collectives": members})


def stored_bytes(tree: Any) -> int:
    """Of abstract arrays with shardings, on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def of_program(
    program: Program,
    state: TrainState,
    *,
    rows: int,
    microbatches: int,
    mesh: tuple[int, int, int],
    attention_product: float,
) -> StepProfile:
    """Counts a compiled step.

    Args:
      state: abstract, as it is stored.
      rows, microbatches: of one device.
      mesh: devices along data, fsdp and tensor.
      attention_product: FLOPs of one product of all of a microbatch's tokens with their keys.
    """
    work = parse(program.text).work()
    params = jax.tree.leaves(state.params)
    sizes = {x.size for x in params} | {math.prod(x.sharding.shard_shape(x.shape)) for x in params}
    outside = [w for w in work if not w.instruction.is_matmul and not collectives.is_collective(w)]
    fixed = [w for w in outside if collectives.grows_with_rows(w, sizes) is False]
    in_all = [w for w in fixed if microbatches > 1 and w.times % microbatches == 0]
    parameter_bytes = stored_bytes(state.params)
    optimizer_bytes = stored_bytes(state.optimizer_state)
    return StepProfile(
        rows=rows,
        microbatches=microbatches,
        parameter_bytes=parameter_bytes,
        optimizer_bytes=optimizer_bytes,
        other_lasting_bytes=program.lasting_bytes - parameter_bytes - optimizer_bytes,
        temporary_bytes=program.temporary_bytes,
        executed_flops=sum(w.flops for w in work) + int(_attention(work) * attention_product),
        matmul_bytes=sum(w.bytes for w in work if w.instruction.is_matmul),
        row_bytes=_bytes(outside) - _bytes(fixed),
        step_bytes=_bytes(fixed) - _bytes(in_all),
        microbatch_bytes=_bytes(in_all),
        collectives=tuple(collectives.read(work, mesh=mesh, fixed_sizes=sizes)),
    )


def _bytes(work: list[Work]) -> int:
    return sum(one.bytes for one in work)


def _attention(work: list[Work]) -> int:
    """How many products attention's kernels compute in a step."""
    return sum(
        one.times * count
        for one in work
        for name, count in ATTENTION_PRODUCTS.items()
        if one.instruction.is_kernel and name in one.instruction.op_name
    )
