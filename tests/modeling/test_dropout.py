"""Dropout: rates, and bits that do not depend on how the work is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicbert_jax.modeling.dropout import NO_DROPOUT, Dropout, Site, dropout, row_keys
from pallas_kernels import keep_mask, random_bits

KEY = jax.random.key(7)


def test_rows_keep_their_bits_in_any_part_of_the_batch():
    x_BLE = jnp.ones((8, 16, 32))
    keys_B = row_keys(KEY, 8)
    whole = dropout(x_BLE, 0.1, keys_B, layer=0, site=Site.HIDDEN)
    part = dropout(x_BLE[5:7], 0.1, keys_B[5:7], layer=0, site=Site.HIDDEN)
    np.testing.assert_array_equal(whole[5:7], part)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_rate_and_scale(rate):
    x_BLE = jnp.ones((8, 128, 256))
    y_BLE = dropout(x_BLE, rate, row_keys(KEY, 8), layer=0, site=Site.HIDDEN)
    n = x_BLE.size
    dropped = int((y_BLE == 0).sum())
    assert abs(dropped - rate * n) < 5 * np.sqrt(n * rate * (1 - rate))
    np.testing.assert_allclose(y_BLE[y_BLE != 0], 1 / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize(("rate", "value"), [(0.1, 100), (0.3, 120)])
def test_the_scale_is_rounded_once(rate, value):
    """In bfloat16: not divided by 1 - rate as rounded there, which for 0.1 would be 0.17% off."""
    x_BLE = jnp.full((2, 8, 64), value, jnp.bfloat16)
    y_BLE = dropout(x_BLE, rate, row_keys(KEY, 2), layer=0, site=Site.HIDDEN)
    expected = jnp.asarray(value / (1 - rate), jnp.bfloat16)
    assert set(np.asarray(y_BLE, np.float32).ravel().tolist()) == {0.0, float(expected)}
    assert expected != jnp.bfloat16(value) / jnp.bfloat16(1 - rate)


def test_places_and_rows_are_independent():
    """Between any two masks as many elements agree as chance has it."""
    counters = jnp.arange(2**15, dtype=jnp.uint32)
    masks = [keep_mask(key, counters, 0.5) for key in row_keys(KEY, 4)]
    x_BLE = jnp.ones((1, 128, 256))
    for layer, site in [(0, Site.HIDDEN), (1, Site.HIDDEN), (0, Site.FEED_FORWARD)]:
        masks.append(dropout(x_BLE, 0.5, row_keys(KEY, 1), layer=layer, site=site).ravel() != 0)
    for i, a in enumerate(masks):
        for b in masks[:i]:
            if i == 4 and b is masks[0]:
                continue
            agreement = float((a == b).mean())
            assert abs(agreement - 0.5) < 5 * 0.5 / np.sqrt(len(counters))


def test_a_run_resumed_with_later_code_drops_the_same_elements():
    """A change of these bits changes what a resumed run computes."""
    x_BLE = jnp.ones((2, 2, 8))
    y_BLE = dropout(x_BLE, 0.5, row_keys(KEY, 2), layer=1, site=Site.FEED_FORWARD)
    kept = ["".join(map(str, row)) for row in np.asarray(y_BLE != 0, np.int32).reshape(2, 16)]
    assert kept == ["0111100101010010", "0001000000011100"]


def test_no_keys_or_no_rate_is_no_dropout():
    keys_B = row_keys(KEY, 2)
    place = {"layer": 0, "site": Site.HIDDEN}
    assert Dropout.at(None, 0.1, **place) is Dropout.at(keys_B, 0.0, **place) is NO_DROPOUT
    assert Dropout.at(keys_B, 0.1, **place).rate == 0.1


def test_bits_are_evenly_spread_and_uncorrelated():
    words = jax.random.key_data(KEY)
    bits = np.asarray(random_bits(words, jnp.arange(2**16, dtype=jnp.uint32)))
    ones = ((bits[:, None] >> np.arange(32)) & 1).astype(np.float64)
    assert np.abs(ones.mean(axis=0) - 0.5).max() < 5 * 0.5 / 2**8
    neighbours = (ones[1:] == ones[:-1]).mean(axis=0)
    assert np.abs(neighbours - 0.5).max() < 5 * 0.5 / 2**8
    assert len(np.unique(bits)) > 0.999 * len(bits)


def test_wrong_number_of_keys():
    with pytest.raises(ValueError, match=r"one for each of 3 rows"):
        row_keys(jax.random.split(KEY, 4), 3)
