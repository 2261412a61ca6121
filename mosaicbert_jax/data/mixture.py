"""Several data sets read as one, each with a share of the sequences."""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int64, Integer

from mosaicbert_jax.buckets import Place, place
from mosaicbert_jax.data.dataset import DatasetMetadata, TokenDataset
from mosaicbert_jax.errors import UserError


class Mixture:
    """Data sets in given shares; what packing, masking and training see as one data set.

    Sequences have indices 0 … len - 1: the first data set's, then the second's, and so on.

    An epoch has as many places as there are sequences. Each data set has its share of the places,
    rounded by largest remainder and spread evenly over the epoch. It fills them with passes over
    its own sequences, each pass in another order, continuing from one epoch into the next. So a
    sequence is read again only after all of its data set were (its neighbours in a window of
    `RowPlanner` aside, which packing reorders), and what is drawn at a place is known without the
    places before it.

    Attributes:
        datasets: as given.
        weights: as given, divided by their sum.
        places: of an epoch, how many each data set has.
        metadata: what holds for all of them, the tokenizer above all; max_seq_len is the longest.

    Raises:
        UserError: no data set or an empty one, one given twice, a weight that isn't positive and
            finite, or data sets with unequal tokenizers or validation fractions.
    """

    metadata: DatasetMetadata

    def __init__(self, datasets: Sequence[TokenDataset], weights: Sequence[float]):
        self.datasets = tuple(datasets)
        _check(self.datasets, weights)
        # Exact, as written in decimals: 0.7 and 0.3 are 7 and 3.
        exact = [Fraction(str(weight)) for weight in weights]
        shares = [weight / sum(exact) for weight in exact]
        self.weights = tuple(float(share) for share in shares)
        sizes = [len(dataset) for dataset in self.datasets]
        self.places = _by_largest_remainder(sum(sizes), shares)
        metadata = [dataset.metadata for dataset in self.datasets]
        self.metadata = dataclasses.replace(
            metadata[0],
            max_seq_len=max(each.max_seq_len for each in metadata),
            # Not one data set's, so nobody's.
            sources=(),
            splits={},
        )
        # The index of each data set's first sequence, and behind them the number of sequences.
        self._starts = np.cumsum([0, *sizes])

    @classmethod
    def open(
        cls,
        shares: Sequence[tuple[str, float]],
        without: Mapping[Place, Collection[str]] | None = None,
        **settings: Any,
    ) -> "Mixture":
        """The training splits of some folders, each with its weight.

        Args:
            shares: a folder and its weight each.
            without: by folder, shards to skip; see `TokenDataset`.
            settings: `together` and `cache`, as for `TokenDataset`.

        Raises:
            UserError: as the class and `TokenDataset`, and for a share that is no sequence at all.
        """
        folders = [place(folder) for folder, _ in shares]
        without = without or {}
        mixture = cls(
            [
                TokenDataset(folder, without=without.get(folder, ()), **settings)
                for folder in folders
            ],
            [weight for _, weight in shares],
        )
        for folder, places in zip(folders, mixture.places, strict=True):
            if not places:
                raise UserError(
                    f"the share of {folder} is below one of the mixture's {len(mixture):,} "
                    "sequences: raise its weight or remove it"
                )
        return mixture

    def held_out(self) -> "Mixture | None":
        """The validation splits of the data sets that have one, with the same weights."""
        found = [
            (dataset.split("validation"), weight)
            for dataset, weight in zip(self.datasets, self.weights, strict=True)
            if "validation" in dataset.metadata.splits
        ]
        return Mixture(*zip(*found, strict=True)) if found else None

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shuffled_together(self) -> int | None:
        """As `TokenDataset.shuffled_together`, of the data set that has most shards."""
        return max((each.shuffled_together or 0 for each in self.datasets), default=0) or None

    @property
    def missing(self) -> int:
        """How many sequences are skipped, of all data sets."""
        return sum(dataset.missing for dataset in self.datasets)

    def is_there(self, indices_S: Integer[np.ndarray, "S"]) -> Bool[np.ndarray, "S"]:
        """As `TokenDataset.is_there`."""
        found_S = np.empty(len(indices_S), bool)
        for dataset, chosen, local in self._by_dataset(indices_S):
            found_S[chosen] = dataset.is_there(local)
        return found_S

    def lengths(self, indices_S: Integer[np.ndarray, "S"]) -> Int[np.ndarray, "S"]:
        """As `TokenDataset.lengths`."""
        lengths_S = np.empty(len(indices_S), np.int32)
        for dataset, chosen, local in self._by_dataset(indices_S):
            lengths_S[chosen] = dataset.lengths(local)
        return lengths_S

    def gather(
        self, indices_S: Integer[np.ndarray, "S"]
    ) -> tuple[Int[np.ndarray, "T"], Int[np.ndarray, "S"]]:
        """As `TokenDataset.gather`."""
        lengths_S = np.empty(len(indices_S), np.int32)
        read = []
        for dataset, chosen, local in self._by_dataset(indices_S):
            tokens, lengths_S[chosen] = dataset.gather(local)
            read.append((chosen, tokens))
        begins_S = np.cumsum(lengths_S, dtype=np.int64) - lengths_S
        tokens_T = np.empty(int(lengths_S.sum(dtype=np.int64)), np.int32)
        for chosen, tokens in read:
            lengths = lengths_S[chosen]
            shifts = begins_S[chosen] - (np.cumsum(lengths, dtype=np.int64) - lengths)
            tokens_T[np.repeat(shifts, lengths) + np.arange(len(tokens))] = tokens
        return tokens_T, lengths_S

    def drawn(
        self, places_S: Int64[np.ndarray, "S"], epoch: int, seed: int
    ) -> tuple[Int64[np.ndarray, "S"], Int64[np.ndarray, "S"]]:
        """The sequences at some places 0 … len - 1 of an epoch, and the pass in which each is read.

        The pass is what an epoch is to a single data set: it decides the mask.
        """
        sequences_S = np.empty(len(places_S), np.int64)
        passes_S = np.empty(len(places_S), np.int64)
        slots = np.arange(len(places_S))
        places, left = places_S, len(self)
        for number, (dataset, share) in enumerate(zip(self.datasets, self.places, strict=True)):
            # Of the places that the data sets before leave, every left/share-th is this one's.
            # The products stay below 2^63 up to 3,000 million sequences.
            before = places * share // left
            is_ours = (places + 1) * share // left > before
            passes, turns = np.divmod(epoch * share + before[is_ours], len(dataset))
            local = np.empty(len(turns), np.int64)
            for one in np.unique(passes):
                local[passes == one] = dataset.shuffled(
                    turns[passes == one], seed, number, int(one)
                )
            sequences_S[slots[is_ours]] = local + self._starts[number]
            passes_S[slots[is_ours]] = passes
            slots, places = slots[~is_ours], (places - before)[~is_ours]
            left -= share
        return sequences_S, passes_S

    def _by_dataset(
        self, indices_S: np.ndarray
    ) -> Iterator[tuple[TokenDataset, np.ndarray, np.ndarray]]:
        """Each data set with the places in `indices_S` that are its, and its own indices there."""
        indices_S = np.asarray(indices_S)
        if indices_S.size and not 0 <= indices_S.min() <= indices_S.max() < len(self):
            raise IndexError(f"sequence index outside 0 … {len(self) - 1}")
        number_S = np.searchsorted(self._starts, indices_S, side="right") - 1
        for number, dataset in enumerate(self.datasets):
            chosen = np.flatnonzero(number_S == number)
            if len(chosen):
                yield dataset, chosen, indices_S[chosen] - self._starts[number]


def _by_largest_remainder(total: int, shares: Sequence[Fraction]) -> tuple[int, ...]:
    """`total` in whole parts; what rounding down leaves goes to the largest remainders."""
    parts = [math.floor(total * share) for share in shares]
    by_remainder = sorted(range(len(parts)), key=lambda i: parts[i] - total * shares[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return tuple(parts)


def _check(datasets: Sequence[TokenDataset], weights: Sequence[float]) -> None:
    if not datasets:
        raise UserError("a mixture of no data sets: name at least one folder")
    for dataset, weight in zip(datasets, weights, strict=True):
        if not 0 < weight < math.inf:
            raise UserError(
                f"{dataset.metadata.folder}: the weight {weight} must be above 0 and finite"
            )
        if not len(dataset):
            raise UserError(
                f"{dataset.metadata.folder}: the data set has no sequences: remove it, or "
                "prepare it from a text that has some"
            )
    first = datasets[0].metadata
    seen = set()
    for metadata in (dataset.metadata for dataset in datasets):
        if metadata.folder.resolve() in seen:
            raise UserError(
                f"{metadata.folder} is in the mixture twice: name it once, with the sum of both "
                "weights"
            )
        seen.add(metadata.folder.resolve())
        if metadata.tokenizer.sha256 != first.tokenizer.sha256:
            raise UserError(
                f"{metadata.folder} has another tokenizer than {first.folder}: prepare it again "
                f"with --tokenizer {first.tokenizer_path}"
            )
        # Documents are held out by their text: with another fraction, what one data set holds out
        # could be trained on in the other.
        fractions = [each.options.get("validation_fraction") for each in (first, metadata)]
        if fractions[0] != fractions[1]:
            raise UserError(
                f"{metadata.folder} holds out a share of {fractions[1]} and {first.folder} of "
                f"{fractions[0]}, so that one could train on what the other holds out: prepare it "
                f"again with --validation-fraction {fractions[0]}"
            )
