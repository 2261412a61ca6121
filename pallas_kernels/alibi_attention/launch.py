"""How attention's Triton kernels are launched: block sizes, warps and stages of each direction.

What runs is, in this order: what the caller gave, what `autotune` stored on this machine, and the
default of the kind of card.
"""

import dataclasses
import functools
import json
import os
import pathlib
from typing import Any, Self

import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.backends import Target

BLOCKS = (32, 64, 128)
RANGE_BLOCK = 32  # tokens of a block of `BlockRanges` on GPUs, which divides all of these


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel's launch parameters.

    Attributes:
      block: tokens that a program owns: queries in the forward kernel; in the backward kernel first
        as keys (for dk, dv), then as queries (for dq).
      inner_block: tokens that they meet at a time: keys, or the other of the two.
      num_warps: of a program.
      num_stages: loads of the inner loop that are under way at a time.
    """

    block: int
    inner_block: int
    num_warps: int
    num_stages: int

    def __post_init__(self):
        if not {self.block, self.inner_block} <= set(BLOCKS):
            raise ValueError(f"blocks must be of {BLOCKS} tokens, not {self}")
        if self.num_warps not in (1, 2, 4, 8, 16) or self.num_stages < 1:
            raise ValueError(f"warps must be 1, 2, 4, 8 or 16 and stages 1 or more, not {self}")


@dataclasses.dataclass(frozen=True)
class AttentionLaunch:
    """Launch parameters of both directions."""

    forward: Launch
    backward: Launch

    def to_dict(self) -> dict[str, Any]:
        """A JSON record."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """From `to_dict`'s record."""
        return cls(Launch(**record["forward"]), Launch(**record["backward"]))


def launch_for(
    target: Target, length: int, head_size: int, dtype: DTypeLike, *, rotates: bool = False
) -> AttentionLaunch:
    """The launch parameters for rows of `length` tokens, in the order given above."""
    key = cache_key(target.device_kind, length, head_size, dtype, rotates=rotates)
    return read_cache(cache_path()).get(key) or default_launch(
        target, head_size, dtype, rotates=rotates
    )


def default_launch(
    target: Target, head_size: int, dtype: DTypeLike, *, rotates: bool = False
) -> AttentionLaunch:
    """Chosen from compiled programs (benchmarks/results/attention_compiled.md), none measured yet.

    Of the launches that spill no registers and fit the card's shared memory, those with the fewest
    instructions for 64 queries that meet 64 keys, as long as a core holds 8 warps or more.
    """
    if jnp.dtype(dtype) == jnp.float32:
        return _FLOAT32[head_size]
    if target.compute_capability is not None and target.compute_capability >= (9, 0):
        return _HOPPER[head_size]
    if not rotates:
        return _AMPERE[head_size]
    return (_A100_ROTATING if target.compute_capability == (8, 0) else _AMPERE_ROTATING)[head_size]


_AMPERE = {
    32: AttentionLaunch(Launch(64, 64, 4, 2), Launch(64, 64, 4, 1)),
    64: AttentionLaunch(Launch(64, 64, 4, 2), Launch(64, 64, 4, 1)),
    128: AttentionLaunch(Launch(128, 64, 8, 2), Launch(64, 64, 8, 1)),
}
# Rotating gradients back takes registers, of which these programs have none left.
_AMPERE_ROTATING = _AMPERE | {128: AttentionLaunch(Launch(128, 64, 8, 2), Launch(32, 64, 4, 1))}
_A100_ROTATING = _AMPERE_ROTATING | {
    64: AttentionLaunch(Launch(64, 64, 4, 2), Launch(32, 64, 2, 1)),
}
# With a second stage, backward spills on some cards of Ampere's kind, and on Hopper ptxas
# serializes the products of warp groups (C7515).
_HOPPER = {
    32: AttentionLaunch(Launch(64, 64, 4, 2), Launch(64, 64, 4, 1)),
    64: AttentionLaunch(Launch(64, 64, 4, 2), Launch(64, 64, 4, 1)),
    128: AttentionLaunch(Launch(64, 64, 4, 2), Launch(64, 32, 4, 1)),
}
# Multiplied in full, without tensor cores: there to check by.
_FLOAT32 = {
    32: AttentionLaunch(Launch(64, 64, 8, 1), Launch(64, 64, 8, 1)),
    64: AttentionLaunch(Launch(32, 32, 8, 1), Launch(32, 32, 8, 1)),
    128: AttentionLaunch(Launch(32, 32, 8, 1), Launch(32, 32, 8, 1)),
}


def candidates(head_size: int, dtype: DTypeLike, *, backward: bool) -> list[Launch]:
    """What is worth a measurement: blocks, and warps with enough work for each."""
    if jnp.dtype(dtype) == jnp.float32:
        return [Launch(block, block, warps, 1) for block in (32, 64) for warps in (4, 8, 16)]
    stages = (1, 2) if backward else (2, 3)
    return [
        Launch(block, inner_block, warps, stage)
        for block, inner_block in (
            (32, 32),
            (32, 64),
            (64, 32),
            (64, 64),
            (128, 32),
            (128, 64),
            (128, 128),
        )
        for warps in (2, 4, 8)
        for stage in stages
        if 16 <= block * 4 // warps <= 128 and (head_size < 128 or block * inner_block <= 8192)
    ]


def cache_path() -> pathlib.Path:
    """Where `autotune` stores what it found, within $XDG_CACHE_HOME or ~/.cache."""
    folder = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(folder) / "pallas_kernels" / "alibi_attention.json"


def cache_key(
    device_kind: str, length: int, head_size: int, dtype: DTypeLike, *, rotates: bool = False
) -> str:
    """Rows of up to 128 tokens, of up to 256, and so on share an entry."""
    longest = max(128, 1 << (length - 1).bit_length())
    key = f"{device_kind}, rows of {longest}, head size {head_size}, {jnp.dtype(dtype).name}"
    return f"{key}, rotated" if rotates else key


@functools.cache
def read_cache(path: pathlib.Path) -> dict[str, AttentionLaunch]:
    """What is stored there, by `cache_key`; nothing if there is no such file.

    Raises:
      ValueError: a file that `store` did not write.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        return {key: AttentionLaunch.from_dict(record) for key, record in records.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} holds no launch parameters ({error}): delete it") from error


def store(path: pathlib.Path, found: dict[str, AttentionLaunch]) -> None:
    """Adds to what is stored there, atomically."""
    records = {key: launch.to_dict() for key, launch in (read_cache(path) | found).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(records, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)
    read_cache.cache_clear()
