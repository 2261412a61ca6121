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
MASK_BITS, ORDER_BITS, ROW_BITS, SHARD_BITS = 1, 2, 3, 4

_MASKED_SHARE = 0.8
_RANDOM_SHARE = 0.1
_OVERFLOW_PROBABILITY = 1e-3

UNITS = ("token", "word", "span")
# Of a span's words, and the most that it has: SpanBERT's (Joshi et al., 2020, arXiv:1907.10529).
_SPAN_END, _LONGEST_SPAN = 0.2, 10
# How many tokens are about chosen together, for the slots that a row needs.
_TOKENS_TOGETHER = {"token": 1, "word": 1, "span": 4}


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
    `vocab_size` on, which only pad the vocabulary.

    With unit "word", whole words are chosen with that probability: all of a word's tokens or none.
    With "span", spans of words whose lengths have a geometric distribution, 3.8 words on average,
    so that each word is chosen with that probability (less at the start of a sequence). What a
    lower rate chooses, a higher one does too.

    Args:
        rate: in (0, 1].
        unit: one of UNITS.
        word_starts: which tokens begin a word, for words and spans.

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
        unit: str = "token",
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
        self._unit, self._word_starts = unit, word_starts
        self._threshold = _threshold(rate)

    def __call__(
        self,
        tokens_T: Int32[np.ndarray, "T"],
        lengths_S: Int[np.ndarray, "S"],
        sequences_S: Int[np.ndarray, "S"],
        epochs_S: Int[np.ndarray, "S"],
    ) -> tuple[Int32[np.ndarray, "T"], Bool[np.ndarray, "T"], UInt64[np.ndarray, "T"]]:
        """Masks whole sequences, given one after the other (T is the sum of the lengths).

        Args:
            tokens_T: the tokens; left as they are.
            lengths_S: tokens of each sequence.
            sequences_S: the index of each sequence in its data set.
            epochs_S: the epoch in which each is read.

        Returns:
            What the model sees, int32; which tokens it has to predict, bool; and each token's draw,
            by which lower rates choose, see `thinned`.
        """
        keys_S = counter_hash(self._seed, MASK_BITS, epochs_S, sequences_S)
        columns_T = np.arange(len(tokens_T)) - np.repeat(
            np.cumsum(lengths_S) - lengths_S, lengths_S
        )
        bits_T = _finalize(
            np.repeat(keys_S, lengths_S) + (_as_uint64(columns_T) + np.uint64(1)) * _GOLDEN_GAMMA
        )
        draws_T = bits_T >> np.uint64(32)
        if self._unit != "token":
            begins_T = self._word_starts(tokens_T) | (columns_T == 0)
            draws_W = draws_T[begins_T]
            if self._unit == "span":
                draws_W = _span_draws(draws_W, bits_T[begins_T], columns_T[begins_T] == 0)
            draws_T = draws_W[np.cumsum(begins_T) - 1]
        chosen_T = (draws_T < self._threshold) & self._ordinary_V[tokens_T]
        masked_T = tokens_T.copy()
        masked_T[chosen_T] = self._replacements(tokens_T[chosen_T], bits_T[chosen_T])
        return masked_T, chosen_T, draws_T

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


def thinned(
    arrays: dict[str, np.ndarray], draws_BP: UInt64[np.ndarray, "B P"], rate: float
) -> dict[str, np.ndarray]:
    """A batch as it would be at a lower masking rate, in the same shapes.

    Tokens that the lower rate does not choose are seen as they are, and not predicted.

    Args:
        arrays: of a `Batch` at a rate of at least `rate`.
        draws_BP: of its predicted tokens.
    """
    weights_BP = arrays["weights_BP"]
    leave_BP = (weights_BP > 0) & (draws_BP >= _threshold(rate))
    row_N, slot_N = np.nonzero(leave_BP)
    tokens_BL = arrays["tokens_BL"].copy()
    tokens_BL[row_N, arrays["positions_BP"][row_N, slot_N]] = arrays["labels_BP"][row_N, slot_N]
    unused = {
        name: np.where(leave_BP, np.zeros((), arrays[name].dtype), arrays[name])
        for name in ("positions_BP", "labels_BP", "weights_BP")
    }
    return {**arrays, "tokens_BL": tokens_BL, **unused}


def _threshold(rate: float) -> np.uint64:
    """Draws below it are chosen."""
    return np.uint64(round(rate * 2**32))


def _span_draws(
    draws_W: UInt64[np.ndarray, "W"], bits_W: UInt64[np.ndarray, "W"], is_first_W: np.ndarray
) -> UInt64[np.ndarray, "W"]:
    """Draws of words that spans cover, from the draws with which spans begin at each.

    At a rate r, a span begins at a word whose draw is below q(r), and is masked with all its words.
    So a word's own draw is r(the least draw of the spans that reach it).
    """
    length_bits_W = _finalize(bits_W + _GOLDEN_GAMMA + _GOLDEN_GAMMA) >> np.uint64(11)
    uniform_W = length_bits_W * (1.0 / 2**53)
    longest = 1.0 - (1.0 - _SPAN_END) ** _LONGEST_SPAN  # so long or shorter, of all lengths
    lengths_W = 1 + np.floor(np.log1p(-uniform_W * longest) / np.log1p(-_SPAN_END)).astype(np.int64)
    index_W = np.arange(len(draws_W))
    in_sequence_W = index_W - np.maximum.accumulate(np.where(is_first_W, index_W, 0))
    starts_W = draws_W * (1.0 / 2**32)
    least_W = starts_W.copy()
    for behind in range(1, min(_LONGEST_SPAN, len(draws_W))):
        reached_W = (lengths_W[:-behind] > behind) & (in_sequence_W[behind:] >= behind)
        reaching_W = np.where(reached_W, starts_W[:-behind], 1.0)
        least_W[behind:] = np.minimum(least_W[behind:], reaching_W)
    spared_W = np.ones(len(draws_W))
    for behind in range(_LONGEST_SPAN):
        longer = ((1.0 - _SPAN_END) ** behind - (1.0 - longest)) / longest
        spared_W *= 1.0 - least_W * longer
    return np.minimum((1.0 - spared_W) * 2.0**32, 2.0**32 - 1).astype(np.uint64)


def predictions_per_row(row_length: int, rate: float, unit: str = "token") -> int:
    """P, the slots for predicted tokens in a row: a static shape on every mesh and host count.

    The smallest multiple of 8 that `row_length` independent choices exceed with probability below
    1e-3 (exact binomial tail), and at most `row_length`. 512 tokens at 30% give 192. Spans are
    counted as if so many fewer choices were made of several tokens each.

    Raises:
        UserError: the rate isn't in (0, 1].
    """
    _check_rate(rate)
    together = _TOKENS_TOGETHER[unit]
    if together > 1:
        return min(row_length, together * predictions_per_row(row_length // together, rate))
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
