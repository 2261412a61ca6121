"""Masking: which tokens are predicted, and what the model sees in their place.

A mask is a function of (seed, epoch, sequence index, column in the sequence), computed by a
counter-based hash: it depends on neither packing, batch, host nor worker, and any part of it can
be computed alone. The hash is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
number generators", OOPSLA 2014; its finaliser is variant 13 of Stafford's mixers).
"""

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt64

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.text.vocabulary import SpecialTokenIds

if TYPE_CHECKING:  # it imports the library that tokenizes, which only whole words need
    from mosaicbert_jax.text.word_starts import WordStarts

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LOW_32_BITS = np.uint64(0xFFFFFFFF)

# What the bits are for: the first word of a hash, so that no two uses share bits.
MASK_BITS, ORDER_BITS, ROW_BITS = 1, 2, 3

_MASKED_SHARE = 0.8
_RANDOM_SHARE = 0.1
_OVERFLOW_PROBABILITY = 1e-3


def counter_hash(*words: int | Int[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """64 random bits for each tuple of words; integers and arrays broadcast as in numpy.

    The order of words matters. Returns at least one dimension.
    """
    state = np.zeros(1, np.uint64)  # an array, because numpy warns when a scalar wraps around
    for word in words:
        state = _finalize(state + (_as_uint64(word) + np.uint64(1)) * _GOLDEN_GAMMA)
    return state


class TokenMasking:
    """Chooses each ordinary token with probability `rate`, independently of all others.

    Of the chosen, 80% become [MASK], 10% an ordinary token drawn uniformly, 10% stay. The five
    special ids are neither chosen nor drawn, wherever they stand; nor are the ids from
    `vocab_size` on, which only pad the vocabulary. With `word_starts`, whole words are chosen with
    that probability: all of a word's tokens or none.

    Raises:
        UserError: the rate isn't in (0, 1], or no ordinary token is left to draw.
    """

    def __init__(
        self,
        *,
        seed: int,
        rate: float,
        vocab_size: int,
        padded_vocab_size: int,
        special_token_ids: SpecialTokenIds,
        word_starts: "WordStarts | None" = None,
    ):
        _check_rate(rate)
        ids = special_token_ids
        ordinary_V = np.arange(padded_vocab_size) < vocab_size
        ordinary_V[[ids.pad, ids.unk, ids.cls, ids.sep, ids.mask]] = False
        self._ordinary_V = ordinary_V
        self._drawable_ids = np.flatnonzero(ordinary_V).astype(np.int32)
        if not len(self._drawable_ids):
            raise UserError(
                f"all of the {vocab_size} vocabulary entries are special tokens: train the "
                "tokenizer on more text"
            )
        self._mask_id = ids.mask
        self._seed = seed
        self._word_starts = word_starts
        self._choice_threshold = np.uint64(round(rate * 2**32))

    def __call__(
        self,
        tokens_T: Int32[np.ndarray, "T"],
        lengths_S: Int[np.ndarray, "S"],
        sequences_S: Int[np.ndarray, "S"],
        epochs_S: Int[np.ndarray, "S"],
    ) -> tuple[Int32[np.ndarray, "T"], Bool[np.ndarray, "T"]]:
        """Masks whole sequences, given one after the other (T is the sum of the lengths).

        Args:
            tokens_T: the tokens; left as they are.
            lengths_S: tokens of each sequence.
            sequences_S: the index of each sequence in its data set.
            epochs_S: the epoch in which each is read.

        Returns:
            What the model sees, int32, and which tokens it has to predict, bool.
        """
        keys_S = counter_hash(self._seed, MASK_BITS, epochs_S, sequences_S)
        columns_T = np.arange(len(tokens_T)) - np.repeat(
            np.cumsum(lengths_S) - lengths_S, lengths_S
        )
        bits_T = _finalize(
            np.repeat(keys_S, lengths_S) + (_as_uint64(columns_T) + np.uint64(1)) * _GOLDEN_GAMMA
        )
        chosen_T = (bits_T >> np.uint64(32)) < self._choice_threshold
        if self._word_starts is not None:
            begins_T = self._word_starts(tokens_T) | (columns_T == 0)
            chosen_T = chosen_T[begins_T][np.cumsum(begins_T) - 1]
        chosen_T &= self._ordinary_V[tokens_T]
        masked_T = tokens_T.copy()
        masked_T[chosen_T] = self._replacements(tokens_T[chosen_T], bits_T[chosen_T])
        return masked_T, chosen_T

    def _replacements(
        self, tokens_N: Int32[np.ndarray, "N"], bits_N: UInt64[np.ndarray, "N"]
    ) -> Int32[np.ndarray, "N"]:
        # The high half of the bits decided the choice; the low half is still free.
        kind_N = (bits_N & _LOW_32_BITS) * (1.0 / 2**32)
        # Multiply and shift maps 32 bits onto the table (Lemire 2019); for a vocabulary of 30,000
        # no id is favored by more than 1e-5 of its probability.
        fresh_N = _finalize(bits_N + _GOLDEN_GAMMA) >> np.uint64(32)
        drawn_N = (fresh_N * np.uint64(len(self._drawable_ids))) >> np.uint64(32)
        random_N = self._drawable_ids[drawn_N.astype(np.int64)]
        kept_or_random_N = np.where(kind_N < _MASKED_SHARE + _RANDOM_SHARE, random_N, tokens_N)
        return np.where(kind_N < _MASKED_SHARE, np.int32(self._mask_id), kept_or_random_N)


def predictions_per_row(row_length: int, rate: float) -> int:
    """P, the slots for predicted tokens in a row: a static shape on every mesh and host count.

    The smallest multiple of 8 that `row_length` independent choices exceed with probability below
    1e-3 (exact binomial tail), and at most `row_length`. 512 tokens at 30% give 192.

    Raises:
        UserError: the rate isn't in (0, 1].
    """
    _check_rate(rate)
    # Summed from the far end, where the terms are smallest, so nothing is lost to rounding.
    tail = 0.0
    most = row_length
    while most > 0 and tail + _binomial_probability(most, row_length, rate) < _OVERFLOW_PROBABILITY:
        tail += _binomial_probability(most, row_length, rate)
        most -= 1
    return min(row_length, max(8, -(-most // 8) * 8))


def _binomial_probability(successes: int, trials: int, rate: float) -> float:
    if rate == 1.0:
        return float(successes == trials)
    log_ways = (
        math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(trials - successes + 1)
    )
    return math.exp(
        log_ways + successes * math.log(rate) + (trials - successes) * math.log1p(-rate)
    )


def _as_uint64(word: int | np.ndarray) -> UInt64[np.ndarray, "..."]:
    if isinstance(word, np.ndarray):
        return word.astype(np.uint64)
    return np.full(1, int(word) % 2**64, np.uint64)


def _finalize(bits: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    bits = (bits ^ (bits >> np.uint64(30))) * _MIX_1
    bits = (bits ^ (bits >> np.uint64(27))) * _MIX_2
    return bits ^ (bits >> np.uint64(31))


def _check_rate(rate: float) -> None:
    if not 0.0 < rate <= 1.0:
        raise UserError(f"masking rate {rate} isn't in (0, 1]: pretraining uses 0.3")
