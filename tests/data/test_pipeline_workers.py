"""The same batches however many hosts, threads and processes make them, and none left behind."""

import contextlib
import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import grain
import numpy as np
import pytest

from mosaicbert_jax.data.dataset import TokenDataset
from mosaicbert_jax.data.mixture import Mixture
from mosaicbert_jax.data.pipeline import PackedBatches, batches
from mosaicbert_jax.errors import UserError
from tests.conftest import ROOT
from tests.data.pipeline_cases import (
    ARRAY_NAMES,
    SETTINGS,
    MemoryDataset,
    assert_same_arrays,
    assert_same_batches,
    stream,
    write_data_set,
)


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("packing", [True, False])
def test_hosts_together_make_the_batch_of_one(hosts, packing):
    dataset = MemoryDataset(53)
    settings = {"rows_per_batch": 8, "epochs": 2, "packing": packing}
    whole = stream(dataset, **settings)
    parts = [
        stream(dataset, process_index=host, process_count=hosts, **settings)
        for host in range(hosts)
    ]
    for expected, *per_host in zip(whole, *parts, strict=True):
        joined = {
            name: np.concatenate([batch.arrays[name] for batch in per_host]) for name in ARRAY_NAMES
        }
        assert_same_arrays(joined, expected.arrays)
        for batch in per_host:
            assert (batch.sequences, batch.tokens) == (expected.sequences, expected.tokens)
            assert batch.position == expected.position
        assert sum(batch.overflowed for batch in per_host) == expected.overflowed


def test_a_host_reads_only_its_rows():
    dataset = MemoryDataset(60)
    read = []
    for host in range(2):
        dataset.indices_gathered.clear()
        stream(dataset, epochs=1, process_index=host, process_count=2)
        read.append(set(dataset.indices_gathered))
    assert not read[0] & read[1]
    assert read[0] | read[1] == set(range(60))


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_prefetched_batches_carry_the_position_after_them(prefetch):
    dataset = MemoryDataset(53)
    whole = stream(dataset, 30)
    with contextlib.closing(batches(dataset, prefetch=prefetch, **SETTINGS)) as ahead:
        first = list(itertools.islice(ahead, 11))
    with contextlib.closing(
        batches(dataset, position=first[-1].position, prefetch=prefetch, **SETTINGS)
    ) as ahead:
        assert_same_batches(first + list(itertools.islice(ahead, 19)), whole)


def test_prefetch_wrapper_restores_its_own_state():
    source = PackedBatches(MemoryDataset(53), **SETTINGS)
    ahead = grain.experimental.ThreadPrefetchIterDataset(source, prefetch_buffer_size=3)
    with contextlib.closing(iter(ahead)) as iterator:
        for _ in range(5):
            next(iterator)
        state = iterator.get_state()
        expected = [next(iterator) for _ in range(4)]
    with contextlib.closing(iter(ahead)) as iterator:
        iterator.set_state(state)
        assert_same_batches([next(iterator) for _ in range(4)], expected)


@pytest.mark.parametrize("epochs", [None, 2])
def test_several_workers_yield_the_same_stream(epochs):
    dataset = MemoryDataset(53)
    source = PackedBatches(dataset, epochs=epochs, **SETTINGS)
    spread = grain.experimental.multithread_prefetch(source, num_threads=3, buffer_size=2)
    with contextlib.closing(iter(spread)) as iterator:
        found = list(itertools.islice(iterator, 25))
    assert_same_batches(found, stream(dataset, 25, epochs=epochs))


def prefetch_threads():
    return [t for t in threading.enumerate() if "prefetch" in t.name and t.is_alive()]


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_close_leaves_no_thread_behind(taken):
    before = prefetch_threads()
    iterator = batches(MemoryDataset(53), prefetch=2, **SETTINGS)
    for _ in range(taken):
        next(iterator)
    assert (len(prefetch_threads()) > len(before)) == (taken > 0)
    iterator.close()
    iterator.close()
    assert prefetch_threads() == before
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


def test_a_closed_iterator_without_prefetch_refuses_to_go_on():
    iterator = iter(PackedBatches(MemoryDataset(5), **SETTINGS))
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


def test_an_error_in_the_thread_reaches_the_consumer_and_no_batch_is_lost():
    dataset = MemoryDataset(53)
    whole = stream(dataset, 6)
    gather, calls = dataset.gather, itertools.count()

    def failing_once(indices_S):
        if next(calls) == 3:
            raise OSError("the disk is gone")
        return gather(indices_S)

    dataset.gather = failing_once
    with contextlib.closing(batches(dataset, prefetch=2, **SETTINGS)) as iterator:
        found = [next(iterator) for _ in range(3)]
        with pytest.raises(OSError, match="the disk is gone"):
            next(iterator)
        assert not prefetch_threads()
        found += [next(iterator) for _ in range(3)]
    assert_same_batches(found, whole)


@pytest.mark.parametrize(("workers", "hosts"), [(1, 4), (4, 2)])
def test_worker_processes_make_the_batches_of_a_thread(tmp_path, workers, hosts):
    """From a position that a thread saved to one that it resumes from."""
    folders = [str(write_data_set(tmp_path / f"{n}", 30, name=n)) for n in range(2)]
    mixture = Mixture.open(((folders[0], 3), (folders[1], 1)))
    settings = SETTINGS | {
        "rows_per_batch": 8,
        "epochs": 3,
        "process_index": 1,
        "process_count": hosts,
    }
    whole = list(PackedBatches(mixture, **settings))
    before = multiprocessing.active_children()
    with contextlib.closing(
        batches(mixture, workers=workers, position=whole[2].position, **settings)
    ) as iterator:
        assert_same_batches(list(itertools.islice(iterator, 5)), whole[3:8])
        assert len(multiprocessing.active_children()) > len(before)
        assert_same_batches(list(iterator), whole[8:])
    assert multiprocessing.active_children() == before
    with contextlib.closing(batches(mixture, position=whole[7].position, **settings)) as iterator:
        assert_same_batches(list(iterator), whole[8:])


def test_an_error_in_a_worker_process_reaches_the_consumer(tmp_path):
    folder = write_data_set(tmp_path / "set", 30)
    tokens_path = folder / "train-00000.tokens.npy"
    tokens = np.load(tokens_path)
    np.save(tokens_path, tokens + np.uint16(2000))
    before = multiprocessing.active_children()
    with (
        contextlib.closing(batches(TokenDataset(folder), workers=1, **SETTINGS)) as iterator,
        pytest.raises(UserError, match="a token is not in the vocabulary"),
    ):
        next(iterator)
    assert multiprocessing.active_children() == before


_KILLED_RUN = """
import multiprocessing, os, signal, sys
from mosaicbert_jax.data.dataset import TokenDataset
from mosaicbert_jax.data.pipeline import batches
from tests.data.pipeline_cases import SETTINGS

if __name__ == "__main__":
    iterator = batches(TokenDataset(sys.argv[1]), workers=1, **SETTINGS)
    next(iterator)
    open(sys.argv[2], "w").write(str(multiprocessing.active_children()[0].pid))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for the process in /proc")
def test_a_worker_process_ends_with_a_run_that_was_killed(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(_KILLED_RUN)
    folder = write_data_set(tmp_path / "set", 30)
    subprocess.run(
        [sys.executable, str(script), str(folder), str(tmp_path / "pid")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,  # multiprocessing's own process clears up and says so
        check=False,
    )
    worker = Path("/proc") / (tmp_path / "pid").read_text()
    until = time.monotonic() + 10
    while _runs(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(worker)


def _runs(process):
    try:
        return process.joinpath("stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
