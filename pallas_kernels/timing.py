"""Measures how long a program takes on a device."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def seconds_per_call(
    function: Callable[..., Any], *operands: Any, calls: int = 20, repeats: int = 5
) -> float:
    """Seconds of one call: many are enqueued and waited for once, so that launches overlap.

    Args:
      function: compiled, or `jax.jit` of a function; it is called once before.
      calls: enqueued at a time.
      repeats: measurements, of which the median is taken.
    """
    jax.block_until_ready(function(*operands))
    measured = []
    for _ in range(repeats):
        begun = time.perf_counter()
        for _ in range(calls):
            result = function(*operands)
        jax.block_until_ready(result)
        measured.append((time.perf_counter() - begun) / calls)
    return statistics.median(measured)
