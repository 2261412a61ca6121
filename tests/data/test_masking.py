import math
from fractions import Fraction

import numpy as np
import pytest

from mosaicbert_jax.data.masking import (
    TokenMasking,
    counter_hash,
    predictions_per_row,
    thinned,
)
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.text.vocabulary import SpecialTokenIds

# Scattered, so that nothing can rely on the special ids being the first five.
SPECIAL = SpecialTokenIds(pad=0, unk=7, cls=11, sep=12, mask=40)
SPECIAL_IDS = [0, 7, 11, 12, 40]
VOCAB, PADDED_VOCAB = 50, 64


def masking(seed=17, rate=0.3, **options):
    return TokenMasking(
        seed=seed,
        rate=rate,
        **options,
        vocab_size=VOCAB,
        padded_vocab_size=PADDED_VOCAB,
        special_token_ids=SPECIAL,
    )


def corpus(sequences=4000, length=64):
    """Ordinary and special tokens, all of them anywhere."""
    tokens = np.random.default_rng(0).integers(0, VOCAB, sequences * length).astype(np.int32)
    return tokens, np.full(sequences, length), np.arange(sequences), np.zeros(sequences, np.int64)


def assert_share(found, total, share):
    deviation = math.sqrt(total * share * (1 - share))
    assert abs(found - total * share) < 5 * deviation, (found / total, share)


@pytest.mark.parametrize("rate", [0.15, 0.3, 1.0])
def test_shares_of_chosen_masked_random_and_kept(rate):
    tokens_T, *where = corpus()
    masked_T, chosen_T, _ = masking(rate=rate)(tokens_T, *where)
    ordinary_T = ~np.isin(tokens_T, SPECIAL_IDS)
    assert_share(chosen_T.sum(), ordinary_T.sum(), rate) if rate < 1 else None
    chosen = chosen_T.sum()
    is_mask_T = masked_T[chosen_T] == SPECIAL.mask
    is_same_T = masked_T[chosen_T] == tokens_T[chosen_T]
    # A random token is the original one in 45 draws.
    assert_share(is_mask_T.sum(), chosen, 0.8)
    assert_share(is_same_T.sum(), chosen, 0.1 + 0.1 / 45)
    assert_share((~is_mask_T & ~is_same_T).sum(), chosen, 0.1 * 44 / 45)


def test_a_rate_of_one_chooses_every_ordinary_token():
    tokens_T, *where = corpus(sequences=50)
    _, chosen_T, _ = masking(rate=1.0)(tokens_T, *where)
    np.testing.assert_array_equal(chosen_T, ~np.isin(tokens_T, SPECIAL_IDS))


def test_special_tokens_are_neither_chosen_nor_drawn_and_padding_ids_not_drawn():
    tokens_T, *where = corpus(sequences=20_000)
    masked_T, chosen_T, _ = masking()(tokens_T, *where)
    assert not np.isin(tokens_T[chosen_T], SPECIAL_IDS).any()
    np.testing.assert_array_equal(masked_T[~chosen_T], tokens_T[~chosen_T])
    drawn = masked_T[(masked_T != tokens_T) & (masked_T != SPECIAL.mask)]
    counts = np.bincount(drawn, minlength=PADDED_VOCAB)
    ordinary = np.setdiff1d(np.arange(VOCAB), SPECIAL_IDS)
    assert counts.sum() == counts[ordinary].sum()
    expected = len(drawn) / len(ordinary)
    assert ((counts[ordinary] - expected) ** 2 / expected).sum() < 110  # 44 degrees: p = 1e-7


def test_ids_that_only_pad_the_vocabulary_are_not_chosen():
    tokens_T = np.full(1000, VOCAB + 3, np.int32)
    _, chosen_T, _ = masking()(tokens_T, np.array([1000]), np.array([0]), np.array([0]))
    assert not chosen_T.any()


def test_a_sequence_is_masked_alike_whatever_stands_around_it():
    lengths_S = np.random.default_rng(1).integers(1, 30, 40)
    tokens_T = np.random.default_rng(2).integers(0, VOCAB, lengths_S.sum()).astype(np.int32)
    sequences_S = np.arange(40) * 1_000_003
    epochs_S = np.arange(40) % 3
    together = masking()(tokens_T, lengths_S, sequences_S, epochs_S)
    ends = np.cumsum(lengths_S)
    for i in reversed(range(40)):
        one = slice(ends[i] - lengths_S[i], ends[i])
        here = slice(i, i + 1)
        alone = masking()(tokens_T[one], lengths_S[here], sequences_S[here], epochs_S[here])
        np.testing.assert_array_equal(alone[0], together[0][one])
        np.testing.assert_array_equal(alone[1], together[1][one])


def test_the_tokens_given_are_left_as_they_are():
    tokens_T, *where = corpus(sequences=20)
    before = tokens_T.copy()
    masking()(tokens_T, *where)
    np.testing.assert_array_equal(tokens_T, before)


def chosen_SL(seed=17, epoch=0, first=0):
    sequences, length = 3000, 64
    tokens_T = np.full(sequences * length, 20, np.int32)
    where = np.full(sequences, length), first + np.arange(sequences), np.full(sequences, epoch)
    return masking(seed=seed)(tokens_T, *where)[1].reshape(sequences, length)


@pytest.mark.parametrize(
    "other_SL",
    [
        pytest.param(lambda a: np.roll(a, 1, axis=1), id="next column"),
        pytest.param(lambda a: np.roll(a, 1, axis=0), id="next sequence"),
        pytest.param(lambda a: np.roll(a, (1, 1), axis=(0, 1)), id="diagonal"),
        pytest.param(lambda a: np.roll(a, (1, -1), axis=(0, 1)), id="other diagonal"),
        pytest.param(lambda a: chosen_SL(epoch=1), id="next epoch"),
        pytest.param(lambda a: chosen_SL(seed=18), id="next seed"),
        pytest.param(lambda a: chosen_SL(epoch=1, first=1), id="next epoch and sequence"),
        pytest.param(lambda a: chosen_SL(seed=16, epoch=1), id="seed and epoch trade places"),
    ],
)
def test_choices_are_independent_of(other_SL):
    a = chosen_SL()
    both = (a & other_SL(a)).sum()
    assert_share(both, a.size, 0.3 * 0.3)


def test_hash_gives_the_published_splitmix64_stream():
    # The first outputs of SplitMix64 seeded with 0, as in its reference implementation.
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert counter_hash(np.arange(3)).tolist() == expected
    assert counter_hash(2).tolist() == expected[2:]


def test_hash_depends_on_the_order_of_its_words():
    hashes = {counter_hash(a, b).item() for a in range(50) for b in range(50)}
    assert len(hashes) == 2500


def overflow_probability(row_length, rate, slots):
    p = Fraction(rate).limit_denominator(1000)
    terms = (
        math.comb(row_length, k) * p**k * (1 - p) ** (row_length - k)
        for k in range(slots + 1, row_length + 1)
    )
    return float(sum(terms))


@pytest.mark.parametrize("row_length", [16, 64, 100, 128, 256, 512])
@pytest.mark.parametrize("rate", [0.15, 0.3, 0.9])
def test_predictions_per_row_is_the_smallest_that_seldom_overflows(row_length, rate):
    slots = predictions_per_row(row_length, rate)
    assert slots % 8 == 0 or slots == row_length
    assert overflow_probability(row_length, rate, slots) < 1e-3
    smaller = (slots - 1) // 8 * 8
    assert smaller == 0 or overflow_probability(row_length, rate, smaller) >= 1e-3


def test_predictions_per_row_of_the_recipe():
    assert predictions_per_row(512, 0.3) == 192
    assert predictions_per_row(128, 0.3) == 56
    assert predictions_per_row(8192, 0.3) == 2592
    assert predictions_per_row(5, 0.3) == 5
    assert predictions_per_row(512, 1.0) == 512


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5, math.nan])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(UserError, match="masking rate"):
        masking(rate=rate)
    with pytest.raises(UserError, match="masking rate"):
        predictions_per_row(128, rate)


def test_a_vocabulary_of_special_tokens_alone_is_refused():
    with pytest.raises(UserError, match="special tokens"):
        TokenMasking(
            seed=0,
            rate=0.3,
            vocab_size=5,
            padded_vocab_size=64,
            special_token_ids=SpecialTokenIds(pad=0, unk=1, cls=2, sep=3, mask=4),
        )


def spans(**settings):
    """Of words of one token each."""
    return masking(
        unit="span", word_starts=lambda tokens_T: np.ones(len(tokens_T), bool), **settings
    )


@pytest.mark.parametrize("rate", [0.15, 0.3, 0.6])
def test_spans_cover_the_share_that_is_asked_for(rate):
    tokens_T = np.full(4000 * 64, 20, np.int32)
    _, *where = corpus()
    _, chosen_T, _ = spans(rate=rate)(tokens_T, *where)
    chosen_SL = chosen_T.reshape(4000, 64)
    assert chosen_SL[:, 10:].mean() == pytest.approx(rate, abs=0.01)
    assert chosen_SL[:, 0].mean() < rate / 2  # no span reaches in from before


def test_the_lengths_of_spans():
    """Few enough not to touch: geometric, at most 10, 3.8 on average."""
    tokens_T = np.full(4000 * 64, 20, np.int32)
    _, *where = corpus()
    _, chosen_T, _ = spans(rate=0.01)(tokens_T, *where)
    edges_T = np.flatnonzero(np.diff(np.pad(chosen_T.reshape(4000, 64), ((0, 0), (1, 1))).ravel()))
    lengths = np.diff(edges_T)[::2]
    assert lengths.max() >= 10
    assert np.mean(lengths > 10) < 0.03  # two that touch
    assert lengths.mean() == pytest.approx(3.8, abs=0.3)
    assert np.mean(lengths == 1) == pytest.approx(0.2 / (1 - 0.8**10), abs=0.03)


@pytest.mark.parametrize("make", [masking, spans])
def test_a_lower_rate_chooses_of_what_a_higher_one_does(make):
    tokens_T, *where = corpus(sequences=400)
    masked_T, chosen_T, draws_T = make(rate=0.3)(tokens_T, *where)
    fewer_masked_T, fewer_T, same_T = make(rate=0.15)(tokens_T, *where)
    np.testing.assert_array_equal(draws_T, same_T)
    assert 0 < fewer_T.sum() < chosen_T.sum()
    assert not (fewer_T & ~chosen_T).any()
    np.testing.assert_array_equal(masked_T[fewer_T], fewer_masked_T[fewer_T])


def test_thinning_is_masking_at_the_lower_rate():
    tokens_T, *where = corpus(sequences=40)

    def arrays_of(rate):
        masked_T, chosen_T, draws_T = masking(rate=rate)(tokens_T, *where)
        shape_BP = (40, 64)
        arrays = {name: np.zeros(shape_BP, np.int32) for name in ("positions_BP", "labels_BP")}
        arrays["weights_BP"], draws_BP = (
            np.zeros(shape_BP, np.float32),
            np.zeros(shape_BP, np.uint64),
        )
        for row, chosen_L in enumerate(chosen_T.reshape(40, 64)):
            (columns_N,) = np.nonzero(chosen_L)
            used = slice(0, len(columns_N))
            arrays["positions_BP"][row, used] = columns_N
            arrays["labels_BP"][row, used] = tokens_T.reshape(40, 64)[row, columns_N]
            arrays["weights_BP"][row, used] = 1
            draws_BP[row, used] = draws_T.reshape(40, 64)[row, columns_N]
        return {**arrays, "tokens_BL": masked_T.reshape(40, 64)}, draws_BP

    high, draws_BP = arrays_of(0.3)
    before = {name: array.copy() for name, array in high.items()}
    found, (wanted, _) = thinned(high, draws_BP, 0.2), arrays_of(0.2)
    np.testing.assert_array_equal(found["tokens_BL"], wanted["tokens_BL"])
    used_BP = found["weights_BP"] > 0
    assert used_BP.sum() == wanted["weights_BP"].sum() < high["weights_BP"].sum()
    for name in ("positions_BP", "labels_BP"):
        np.testing.assert_array_equal(found[name][used_BP], wanted[name][wanted["weights_BP"] > 0])
        assert not found[name][~used_BP].any()
    for name, array in before.items():
        np.testing.assert_array_equal(high[name], array)


def test_slots_hold_spans():
    """Of rows of spans, as many as of tokens have more than P: fewer than one in a thousand."""
    slots = predictions_per_row(512, 0.3, "span")
    tokens_T, *where = corpus(sequences=2000, length=512)
    tokens_T = np.full_like(tokens_T, 20)
    _, chosen_T, _ = spans(rate=0.3)(tokens_T, *where)
    counts_B = chosen_T.reshape(2000, 512).sum(axis=1)
    assert np.mean(counts_B > slots) < 2e-3
    assert slots < 260
