"""A compiled training step in the few numbers that a plan needs."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Self

import jax

from mosaicbert_jax.planning import collectives, gpu_time
from mosaicbert_jax.planning.collectives import Collective
from mosaicbert_jax.planning.compile_only import Program
from mosaicbert_jax.planning.gpu_time import Range
from mosaicbert_jax.planning.gpus import Gpu
from mosaicbert_jax.planning.traffic import Work, parse
from mosaicbert_jax.training.step import TrainState


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
      matmul_bytes, other_bytes: through device memory, in matrix products and outside them.
      matmul_seconds: predicted, of matrix products, which grow with the rows.
      row_seconds: the same of all else that does.
      step_seconds, microbatch_seconds: the same of what does not, such as the update and the
        launch of kernels: once, and in each microbatch where there are several (those of all
        together).
      collectives: of the step, whose time is not in those above.
    """

    rows: int
    microbatches: int
    parameter_bytes: int
    optimizer_bytes: int
    other_lasting_bytes: int
    temporary_bytes: int
    executed_flops: int
    matmul_bytes: int
    other_bytes: int
    matmul_seconds: Range
    row_seconds: Range
    step_seconds: Range
    microbatch_seconds: Range
    collectives: tuple[Collective, ...]

    @property
    def needed(self) -> int:
        """Bytes of the device's memory."""
        lasting = self.parameter_bytes + self.optimizer_bytes + self.other_lasting_bytes
        return lasting + self.temporary_bytes

    def to_dict(self) -> dict[str, Any]:
        """A JSON record."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """From `to_dict`'s record."""
        members = tuple(Collective(**one) for one in record["collectives"])
        ranges = {name: Range(**record[name]) for name in record if name.endswith("_seconds")}
        return cls(**{**record, **ranges, "collectives": members})


def stored_bytes(tree: Any) -> int:
    """Of abstract arrays with shardings, on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def of_program(
    program: Program,
    state: TrainState,
    *,
    gpu: Gpu,
    rows: int,
    microbatches: int,
    mesh: tuple[int, int, int],
    sequence_length: int,
) -> StepProfile:
    """Counts a compiled step.

    Args:
      state: abstract, as it is stored.
      gpu: that it was compiled for.
      rows, microbatches: of one device.
      mesh: devices along data, fsdp and tensor.
      sequence_length: tokens of the sequences that rows hold.
    """
    work = parse(program.text).work()
    params = jax.tree.leaves(state.params)
    sizes = {x.size for x in params} | {math.prod(x.sharding.shard_shape(x.shape)) for x in params}
    computed = [one for one in work if not collectives.is_collective(one)]
    matmuls = [one for one in computed if one.instruction.is_matmul]
    outside = [one for one in computed if not one.instruction.is_matmul]
    fixed = [one for one in outside if collectives.grows_with_rows(one, sizes) is False]
    growing = [one for one in outside if collectives.grows_with_rows(one, sizes) is not False]

    def seconds(some: Iterable[Work]) -> Range:
        return sum((gpu_time.seconds(gpu, one, sequence_length) for one in some), Range())

    def without_rows(in_each: bool) -> Range:
        def fits(one: Work) -> bool:
            return (microbatches > 1 and one.times % microbatches == 0) == in_each

        return seconds(filter(fits, fixed)) + gpu_time.launch_gaps(filter(fits, computed))

    parameter_bytes = stored_bytes(state.params)
    optimizer_bytes = stored_bytes(state.optimizer_state)
    attention = sum(gpu_time.attention_flops(one, sequence_length) for one in work)
    return StepProfile(
        rows=rows,
        microbatches=microbatches,
        parameter_bytes=parameter_bytes,
        optimizer_bytes=optimizer_bytes,
        other_lasting_bytes=program.lasting_bytes - parameter_bytes - optimizer_bytes,
        temporary_bytes=program.temporary_bytes,
        executed_flops=sum(one.flops for one in work) + attention,
        matmul_bytes=sum(one.bytes for one in matmuls),
        other_bytes=sum(one.bytes for one in outside),
        matmul_seconds=seconds(matmuls),
        row_seconds=seconds(growing),
        step_seconds=without_rows(in_each=False),
        microbatch_seconds=without_rows(in_each=True),
        collectives=tuple(collectives.read(work, mesh=mesh, fixed_sizes=sizes)),
    )
