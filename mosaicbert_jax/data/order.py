"""Pseudorandom permutations, of which any part can be computed alone: the order of an epoch."""

import dataclasses
import math

import numpy as np
from jaxtyping import Int, Int64

from mosaicbert_jax.data.masking import ORDER_BITS, SHARD_BITS, counter_hash


def shuffled(places_N: Int[np.ndarray, "N"], size: int, *key: int) -> Int64[np.ndarray, "N"]:
    """Where the given places of 0 … size - 1 go in a pseudorandom permutation chosen by `key`.

    A Feistel network over pairs (a, b) below √size, walked until it lands below `size` (Black and
    Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). It is computed for the places
    asked for alone: no permutation of the whole data set is ever held. grain's index_shuffle does
    the same one index a call, 50 ms for a window of 8,192 where this takes 1: with many hosts,
    where each plans the whole stream, that call would set the speed of the run.
    """
    side = np.uint64(math.isqrt(size - 1) + 1)
    out_N = np.asarray(places_N).astype(np.uint64)
    walking_N = np.arange(len(out_N))
    while len(walking_N):
        left_N, right_N = np.divmod(out_N[walking_N], side)
        for round_number in range(6):
            drawn_N = counter_hash(*key, round_number, right_N)
            left_N, right_N = right_N, (left_N + drawn_N % side) % side
        out_N[walking_N] = left_N * side + right_N
        walking_N = walking_N[out_N[walking_N] >= size]
    return out_N.astype(np.int64)


@dataclasses.dataclass(frozen=True)
class ShardGroups:
    """The order of an epoch in which only some shards are needed at a time.

    The shards, in random order, form groups; the sequences of a group are shuffled together, and
    the groups come one after another. With one group, that is a permutation of all sequences.

    Attributes:
        shards_K: the shards in their random order.
        starts_K: where each shard's sequences begin in the data set, in that order.
        places_K: where they begin if the groups are not shuffled, and the end.
        groups_G: the place where each group begins, and the end.
        counts_G: the number in `shards_K` at which each group begins, and the end.
        key: of the permutations.
    """

    shards_K: Int64[np.ndarray, "K"]
    starts_K: Int64[np.ndarray, "K"]
    places_K: Int64[np.ndarray, "K+1"]
    groups_G: Int64[np.ndarray, "G+1"]
    counts_G: Int64[np.ndarray, "G+1"]
    key: tuple[int, ...]

    @classmethod
    def draw(
        cls, starts_K: Int64[np.ndarray, "K+1"], together: int, seed: int, *which: int
    ) -> "ShardGroups":
        """Of shards that begin at the given sequences.

        Args:
            starts_K: with the number of sequences behind them.
            together: the most shards of a group; 0 is all of them.
            which: the epoch, or whatever else tells one order from another.
        """
        shards = len(starts_K) - 1
        groups = -(-shards // together) if together else 1
        shards_K = np.arange(shards)
        if groups > 1:
            shards_K = np.argsort(shuffled(shards_K, shards, seed, SHARD_BITS, *which))
        counts_G = np.arange(groups + 1) * shards // groups
        sizes_K = np.diff(starts_K)[shards_K]
        places_K = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes_K)])
        key = (seed, ORDER_BITS, *which)
        return cls(shards_K, starts_K[shards_K], places_K, places_K[counts_G], counts_G, key)

    def sequences(self, places_S: Int64[np.ndarray, "S"]) -> Int64[np.ndarray, "S"]:
        """The indices of the sequences at some places 0 … of the order."""
        group_S = np.searchsorted(self.groups_G, places_S, side="right") - 1
        place_S = np.empty(len(places_S), np.int64)
        for group in np.unique(group_S):
            chosen = group_S == group
            first, last = int(self.groups_G[group]), int(self.groups_G[group + 1])
            key = self.key if len(self.groups_G) == 2 else (*self.key, int(group))
            place_S[chosen] = first + shuffled(places_S[chosen] - first, last - first, *key)
        shard_S = np.searchsorted(self.places_K, place_S, side="right") - 1
        return self.starts_K[shard_S] + place_S - self.places_K[shard_S]

    def shards(self, places_S: Int64[np.ndarray, "S"]) -> tuple[list[int], list[int]]:
        """The shards of the groups of some places, and those of the group behind them, if any."""
        ends = [places_S.min(), places_S.max()] if len(places_S) else [0, 0]
        within_E = np.searchsorted(self.groups_G, ends, side="right") - 1
        numbers = np.array([within_E[0], within_E[1] + 1, within_E[1] + 2])
        begin, end, after = self.counts_G[np.minimum(numbers, len(self.counts_G) - 1)].tolist()
        return self.shards_K[begin:end].tolist(), self.shards_K[end:after].tolist()
