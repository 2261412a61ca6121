import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicbert_jax.data.order import shuffled
from mosaicbert_jax.data.packing import pack, packing_efficiency


def rows_of(packed):
    return np.split(packed.order_S, packed.row_starts_R[1:-1])


def web_text_lengths(count, max_seq_len=128):
    """Documents as in C4: log-normal, a quarter of them cut at max_seq_len."""
    generator = np.random.default_rng(0)
    return np.clip(np.exp(generator.normal(4.3, 0.9, count)), 4, max_seq_len).astype(np.int32)


@st.composite
def lengths_and_row_length(draw):
    row_length = draw(st.integers(1, 70))
    lengths = draw(st.lists(st.integers(1, row_length), max_size=60))
    return np.array(lengths, np.int32), row_length


@given(lengths_and_row_length())
@settings(max_examples=200, deadline=None)
def test_every_sequence_is_in_one_row_and_no_row_is_too_full(case):
    lengths_S, row_length = case
    packed = pack(lengths_S, row_length)
    assert sorted(packed.order_S) == list(range(len(lengths_S)))
    assert packed.row_starts_R[0] == 0
    assert packed.row_starts_R[-1] == len(lengths_S)
    assert (np.diff(packed.row_starts_R) > 0).all()
    if packed.num_rows:
        assert max(lengths_S[row].sum() for row in rows_of(packed)) <= row_length


@given(lengths_and_row_length())
@settings(max_examples=200, deadline=None)
def test_rows_are_those_of_a_plain_best_fit_decreasing(case):
    lengths_S, row_length = case
    room = []
    for length in sorted(lengths_S.tolist(), reverse=True):
        fitting = [row for row, left in enumerate(room) if left >= length]
        if fitting:
            room[min(fitting, key=lambda row: room[row])] -= length
        else:
            room.append(row_length - length)
    packed = pack(lengths_S, row_length)
    found = [row_length - lengths_S[row].sum() for row in rows_of(packed)] if room else []
    assert sorted(found) == sorted(room)


def test_packing_is_deterministic():
    lengths_S = web_text_lengths(1000)
    first, second = pack(lengths_S, 128), pack(lengths_S.copy(), 128)
    np.testing.assert_array_equal(first.order_S, second.order_S)
    np.testing.assert_array_equal(first.row_starts_R, second.row_starts_R)


@pytest.mark.parametrize("row_length", [128, 512])
def test_a_window_of_web_text_fills_its_rows(row_length):
    lengths_S = web_text_lengths(8192)
    packed = pack(lengths_S, row_length)
    assert packing_efficiency(lengths_S, packed.num_rows, row_length) >= 0.98


def test_packing_efficiency_is_the_share_of_real_tokens():
    assert packing_efficiency(np.array([3, 5, 4]), 2, 8) == 12 / 16
    assert packing_efficiency(np.array([], np.int32), 0, 8) == 1.0


@pytest.mark.parametrize(
    ("lengths", "complaint"),
    [([3, 9], "sequence 1 of the window has 9 tokens"), ([3, 0, 2], "sequence 1 .* length 0")],
)
def test_a_length_that_cannot_be_packed_is_named(lengths, complaint):
    with pytest.raises(ValueError, match=complaint):
        pack(np.array(lengths), 8)


def test_shuffled_is_a_permutation_of_any_size():
    for size in [*range(1, 70), 255, 256, 257, 1000]:
        assert sorted(shuffled(np.arange(size), size, 17)) == list(range(size)), size


def test_shuffled_places_are_the_same_one_by_one():
    together = shuffled(np.arange(100), 1000, 17, 3)
    alone = [shuffled(np.array([place]), 1000, 17, 3)[0] for place in range(100)]
    np.testing.assert_array_equal(together, alone)


def test_shuffled_spreads_evenly_over_a_large_data_set():
    size = 364_000_000
    places = shuffled(np.arange(8192), size, 17, 0)
    assert len(set(places.tolist())) == 8192
    in_sixteenths = np.bincount(places * 16 // size, minlength=16)
    assert ((in_sixteenths - 512) ** 2 / 512).sum() < 50  # chi-square, 15 degrees: p = 1e-5
    # Neighbours stay no neighbours: the steps are as wide as between random places.
    assert abs(np.abs(np.diff(places)).mean() / (size / 3) - 1) < 0.05


def test_every_place_is_equally_likely_over_keys():
    landed = np.array([shuffled(np.arange(7), 7, key) for key in range(3000)])
    counts = np.stack([np.bincount(landed[:, place], minlength=7) for place in range(7)])
    expected = 3000 / 7
    assert ((counts - expected) ** 2 / expected).sum() < 90  # 36 degrees of freedom: p = 1e-6
    assert len({tuple(order) for order in landed.tolist()}) > 2000
