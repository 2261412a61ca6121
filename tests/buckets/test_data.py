"""Training data in a bucket: the batches of a local copy, fetched ahead into a bounded cache."""

import contextlib
import json
import os
import time

import numpy as np
import pytest

from campaigns.bucket_servers import Rules
from mosaicbert_jax.data.dataset import TokenDataset
from mosaicbert_jax.data.mixture import Mixture
from mosaicbert_jax.data.order import ShardGroups
from mosaicbert_jax.data.pipeline import batches
from mosaicbert_jax.data.shard_files import Cache
from mosaicbert_jax.errors import UserError
from tests.buckets.conftest import uploaded

TOGETHER = 3


@pytest.fixture
def data(place, many_shards):
    return uploaded(many_shards, place)


def opened(data, tmp_path, *, megabytes=1.0, together=TOGETHER) -> TokenDataset:
    return TokenDataset(
        data, together=together, cache=Cache(tmp_path / "cached", int(megabytes * 1e6))
    )


def stream(dataset, count, *, position=None, workers=0):
    settings = {"row_length": 128, "rows_per_batch": 1, "seed": 17, "masking_rate": 0.3}
    made = batches(dataset, position=position, workers=workers, window_size=16, **settings)
    with contextlib.closing(made):
        return [next(made) for _ in range(count)]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.position == other.position
        for name, array in one.arrays.items():
            np.testing.assert_array_equal(array, other.arrays[name], name)


def shards_asked_for(store) -> list[str]:
    """Names of shards in the order of their first request for a file's content."""
    found = []
    for method, path in store.proxy.requests:
        if method == "GET" and ".npy" in path and "list-type" not in path:
            name = path.split("/")[-1].split("%2F")[-1].split(".")[0]
            found += [] if name in found else [name]
    return found


def test_order_by_groups_reads_each_sequence_once():
    starts = np.array([0, 5, 9, 20, 21, 40, 44, 60])
    for together in (0, 1, 2, 3, 7, 8):
        for epoch in (0, 1):
            order = ShardGroups.draw(starts, together, 17, epoch)
            found = order.sequences(np.arange(60))
            assert sorted(found) == list(range(60))
            np.testing.assert_array_equal(order.sequences(np.arange(13, 30)), found[13:30])
            for begin in range(0, 60, 7):
                places = np.arange(begin, min(begin + 7, 60))
                now, later = order.shards(places)
                used = set(np.searchsorted(starts, found[places], side="right") - 1)
                assert used <= set(now)
                assert not set(now) & set(later)
                if together in (1, 2, 3):
                    assert len(now) <= together * (2 if together > 1 else 7)
    orders = [
        tuple(ShardGroups.draw(starts, 2, 17, epoch).sequences(np.arange(60))) for epoch in (0, 1)
    ]
    assert orders[0] != orders[1]


def test_one_group_is_the_order_without_groups():
    starts = np.array([0, 5, 9, 20])
    expected = ShardGroups.draw(np.array([0, 20]), 0, 17, 3).sequences(np.arange(20))
    for together in (0, 3, 16):
        found = ShardGroups.draw(starts, together, 17, 3).sequences(np.arange(20))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_a_local_copy(data, many_shards, tmp_path, workers):
    local = TokenDataset(many_shards, together=TOGETHER)
    assert_same(stream(opened(data, tmp_path), 30, workers=workers), stream(local, 30))


def test_a_run_starts_with_its_first_shards_and_resumes_with_those_at_hand(
    store, data, many_shards, tmp_path
):
    local = TokenDataset(many_shards, together=TOGETHER)
    expected = stream(local, 30)
    store.proxy.requests.clear()
    store.proxy.rules = Rules(delay=0.02)
    assert_same(stream(opened(data, tmp_path), 1), expected[:1])
    asked = shards_asked_for(store)
    shards = len(local.metadata.splits["train"].shards)
    assert len(asked) <= 3 * TOGETHER < shards
    order = ShardGroups.draw(local._starts, TOGETHER, 17, 0)
    now, _ = order.shards(np.arange(16))
    assert set(asked[:8]) >= {f"train-{shard:05d}" for shard in now}  # eight at once
    # Somewhere in the middle, on another machine.
    store.proxy.requests.clear()
    assert_same(
        stream(opened(data, tmp_path / "2"), 3, position=expected[19].position), expected[20:23]
    )
    asked = shards_asked_for(store)
    assert len(asked) <= 4 * TOGETHER
    assert expected[19].position.window > 0


def test_the_cache_is_bounded_and_used_again(store, data, many_shards, tmp_path):
    expected = stream(TokenDataset(many_shards, together=TOGETHER), 60)
    size = sum(path.stat().st_size for path in many_shards.glob("*.npy"))
    bound = size * 0.6
    most = 0

    def watch(number, method, path):
        nonlocal most
        held = sum(path.stat().st_size for path in (tmp_path / "cached").glob("*.npy"))
        most = max(most, held)

    store.proxy.rules = Rules(fault=watch)
    assert_same(stream(opened(data, tmp_path, megabytes=bound / 1e6), 60), expected)
    assert 0 < most <= bound
    store.proxy.rules = Rules()
    stream(opened(data, tmp_path / "whole"), 60)
    store.proxy.requests.clear()
    stream(opened(data, tmp_path / "whole"), 60)
    assert shards_asked_for(store) == []


def test_downloads_of_a_killed_process_are_removed(data, tmp_path):
    folder = tmp_path / "cached"
    folder.mkdir()
    for name, age in ((".abc.npy.7.1", 7200), (".def.npy.7.2", 5)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    opened(data, tmp_path)
    assert [path.name for path in folder.iterdir()] == [".def.npy.7.2"]


def test_a_cache_that_is_too_small_is_refused(data, tmp_path):
    with pytest.raises(UserError, match=r"data.cache holds .* raise the one or lower the other"):
        opened(data, tmp_path, megabytes=0.001)


def test_a_damaged_file_in_the_cache_is_fetched_again(store, data, many_shards, tmp_path):
    expected = stream(TokenDataset(many_shards, together=TOGETHER), 10)
    stream(opened(data, tmp_path), 10)
    for path in (tmp_path / "cached").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert_same(stream(opened(data, tmp_path), 10), expected)


@pytest.mark.parametrize("what", ["other bytes", "missing"])
def test_a_damaged_shard_is_named(data, tmp_path, what):
    order = ShardGroups.draw(
        TokenDataset(data, cache=Cache(tmp_path, 10**9))._starts, TOGETHER, 17, 0
    )
    path = data / f"train-{order.shards_K[0]:05d}.tokens.npy"
    if what == "missing":
        path.unlink()
    else:
        found = path.read_bytes()
        path.write_bytes(found[:-1] + bytes([found[-1] ^ 1]))
    reason = "it is missing" if what == "missing" else "its sha256 is not the one in dataset.json"
    with pytest.raises(UserError, match=f"{path}: {reason}"):
        stream(opened(data, tmp_path), 3)


def test_faults_while_fetching_change_no_batch(store, data, many_shards, tmp_path):
    expected = stream(TokenDataset(many_shards, together=TOGETHER), 30)
    # gcsfs waits for seconds before it tries again.
    kinds = ("500", "reset", "truncate", *[None] * (2 if store.scheme == "s3" else 17))

    def fault(number, method, path):
        return kinds[number % len(kinds)] if ".npy" in path and "list-type" not in path else None

    store.proxy.rules = Rules(fault=fault)
    assert_same(stream(opened(data, tmp_path), 30), expected)
    assert len(store.proxy.faults) > (10 if store.scheme == "s3" else 3)


def test_a_mixture_of_a_bucket_and_a_disk(data, many_shards, tmp_path):
    cache = Cache(tmp_path / "cached", 10**6)
    import shutil

    other = tmp_path / "other"
    shutil.copytree(many_shards, other)
    mixed = Mixture.open(((str(data), 0.7), (str(other), 0.3)), together=TOGETHER, cache=cache)
    local = Mixture.open(((str(many_shards), 0.7), (str(other), 0.3)), together=TOGETHER)
    assert_same(stream(mixed, 30), stream(local, 30))


def test_a_bucket_without_a_data_set(place):
    with pytest.raises(UserError, match=f"{place}/dataset.json: no such file"):
        TokenDataset(place, cache=None)


def test_the_tokenizer_is_at_hand(data, many_shards):
    from mosaicbert_jax.data.dataset import DatasetMetadata

    metadata = DatasetMetadata.load(str(data))
    assert metadata.digest == DatasetMetadata.load(many_shards).digest
    assert metadata.tokenizer_path.read_bytes() == (many_shards / "tokenizer.json").read_bytes()
    assert json.loads(metadata.to_json())["digest"] == metadata.digest
