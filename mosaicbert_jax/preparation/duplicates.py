"""Which documents were seen before, by a digest of 64 bits each."""

import numpy as np
from jaxtyping import Bool, UInt64


class SeenKeys:
    """A set of 64-bit keys in 8 bytes each (16 for a moment while it grows), and no Python object.

    Two different documents share a key with a chance of n² / 2⁶⁵ among n: one in 300 that a single
    document of C4's 365 million is taken for a duplicate.
    """

    def __init__(self, keys: UInt64[np.ndarray, "N"] | None = None):
        # Sorted runs, each at least twice as long as the next.
        self.runs: list[np.ndarray] = []
        if keys is not None:
            self._add(np.sort(keys))

    def first_time(self, keys_D: UInt64[np.ndarray, "D"]) -> Bool[np.ndarray, "D"]:
        """Whether each key is met for the first time; from now on it has been met."""
        sorted_U, places_U = np.unique(keys_D, return_index=True)
        new_U = np.ones(len(sorted_U), bool)
        for run in self.runs:
            found_U = np.searchsorted(run, sorted_U)
            found_U[found_U == len(run)] = 0
            new_U &= run[found_U] != sorted_U
        self._add(sorted_U[new_U])
        first_D = np.zeros(len(keys_D), bool)
        first_D[places_U[new_U]] = True
        return first_D

    def _add(self, run: np.ndarray) -> None:
        if not len(run):
            return
        while self.runs and len(self.runs[-1]) < 2 * len(run):
            run = np.concatenate([self.runs.pop(), run])
            run.sort()  # in place: another copy would be the third
        self.runs.append(run)
