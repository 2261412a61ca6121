"""SeenKeys against Python's own set."""

import numpy as np

from mosaicbert_jax.preparation.duplicates import SeenKeys


def test_like_a_set_over_many_batches():
    random = np.random.default_rng(0)
    seen, expected_seen = SeenKeys(), set()
    for _ in range(60):
        keys_D = random.integers(0, 3000, random.integers(0, 300)).astype(np.uint64)
        keys_D[::7] += np.uint64(2**64 - 5000)  # beyond what a signed integer holds
        expected = [bool(key not in expected_seen and not expected_seen.add(key)) for key in keys_D]
        assert seen.first_time(keys_D).tolist() == expected
    assert sum(map(len, seen.runs)) == len(expected_seen)
    assert len(seen.runs) < 12


def test_keys_of_before():
    keys = np.array([9, 2, 5], np.uint64)
    assert SeenKeys(keys).first_time(np.array([5, 6, 9, 6], np.uint64)).tolist() == [
        False,
        True,
        False,
        False,
    ]
    assert SeenKeys(keys[:0]).first_time(keys).all()
