"""A preparation on a Ray cluster: files are read, blocks encoded and shards written by its tasks.

Ray places the tasks, moves what they hand each other, and repeats those of a node that is lost;
tasks.py has their functions. This process takes the summaries of blocks in the order of the blocks,
so that nothing depends on who was faster. It never holds a token: what stands for them, and for the
blocks, are references, and a task writes the shard.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import socket
import tempfile
import textwrap
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from mosaicbert_jax.buckets import BucketPath, Place
from mosaicbert_jax.data.shard_files import ShardRecord
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.preparation import tasks
from mosaicbert_jax.preparation.execution import Encoded
from mosaicbert_jax.preparation.inputs import FileEnd, Inputs
from mosaicbert_jax.preparation.sampling import CandidateReader, Sample
from mosaicbert_jax.preparation.shards import shard_name
from mosaicbert_jax.preparation.unfinished import SplitProgress
from mosaicbert_jax.progress import ByteProgress
from mosaicbert_jax.text.encoding import Encoder
from mosaicbert_jax.text.sources import InputFile, disk_files, input_bytes

_INSTALL = '`pip install "mosaicbert-jax[cluster]"` (in a checkout: `pip install -e ".[cluster]"`)'
_CONNECT_SECONDS = 5
_RETRIES = 10  # of a task whose node or process was lost
_CORES_A_READER = 8  # a reader is faster than so many encoders
_BLOCKS_A_TASK = 4  # of 1 MiB; a task costs this process 2 to 3 ms
_TASKS_READ = 3  # of a file, for which there are blocks; about 4 MiB each
_TASKS_ENCODED = 128  # of a file, whose blocks are not taken yet; about 1 MB each
_TASKS_A_CORE = 3  # that run or wait
_CORES_COUNTED_SECONDS = 10.0  # nodes come and go
_PATIENCE_SECONDS = 120.0  # for a node to come when all have gone


@contextlib.contextmanager
def connected(address: str) -> Iterator["RayCluster"]:
    """A Ray cluster, while a preparation runs on it. Its failures are one line each.

    Args:
      address: HOST:PORT of its head, or "auto" on one of its nodes.

    Raises:
      UserError: Ray is not installed, or there is no such cluster, or it can't do the work.
    """
    try:
        import ray
    except ImportError:
        raise UserError(f"a cluster needs Ray, which is not installed: {_INSTALL}") from None
    found = _checked(address)
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # tries, of 40 s each, not 20
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what Ray will change
        try:
            ray.init(found, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"cluster {address}: can't be joined ({reason}); give the address that `ray start "
                "--head` printed, on one of the cluster's nodes, with its Python, Ray and "
                "RAY_AUTH_TOKEN"
            ) from None
    try:
        with _as_user_errors(ray, address):
            yield RayCluster(ray)
    finally:
        ray.shutdown()


def _checked(address: str) -> str:
    """The address for Ray, where someone listens. (Ray itself would wait for a minute.)"""
    if address == "auto":
        return address
    host, colon, port = address.rpartition(":")
    if "://" in address or not (host and colon and port.isdecimal()):
        raise UserError(
            f"cluster {address!r}: give HOST:PORT of the head of a Ray cluster, or auto, on one of "
            "its nodes"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cluster {address}: nobody listens there ({reason}); start Ray (`ray start --head`), "
            "or give the address that it printed"
        ) from None
    # Ray makes the machine's address in its network of 127.0.0.1, where a cluster that keeps to the
    # loopback is not. It doesn't know this spelling.
    return f"LOCALHOST:{port}" if host in ("127.0.0.1", "localhost") else address


@contextlib.contextmanager
def _as_user_errors(ray: Any, address: str) -> Iterator[None]:
    """Turns what Ray raises into what the task raised, or into one line."""
    where = f"cluster {address}"
    failures = ray.exceptions
    again = "; run it again to resume from what is finished"
    try:
        yield
    except failures.RayTaskError as error:
        if isinstance(error.cause, UserError | OSError):
            raise error.cause from None
        reason = textwrap.shorten(f"{type(error.cause).__name__}: {error.cause}", 300)
        raise UserError(
            f"{where}: a task failed: {reason}{again}; all nodes need the same environment"
        ) from error
    except failures.OutOfMemoryError as error:
        raise UserError(
            f"{where}: tasks ran out of memory on a node; start its Ray with fewer CPUs (ray start "
            f"--num-cpus){again}"
        ) from error
    except (
        failures.NodeDiedError,
        failures.WorkerCrashedError,
        failures.LocalRayletDiedError,
        failures.ObjectLostError,
    ) as error:
        raise UserError(
            f"{where}: a task was lost with its node or its process {_RETRIES + 1} times "
            f"({type(error).__name__}){again}"
        ) from error
    except failures.RayError as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        raise UserError(f"{where}: {reason}{again}") from error


@dataclasses.dataclass
class _File:
    """A file that is being read, or whose blocks are not all taken.

    Attributes:
      blocks: Ray's generator of references to some blocks each; None at its end.
      encoded: references to the summaries and the tokens of blocks that were not taken yet.
    """

    number: int
    blocks: Any
    encoded: collections.deque[tuple[Any, Any]] = dataclasses.field(
        default_factory=collections.deque
    )

    @property
    def has_room(self) -> bool:
        """Whether more of it may be encoded, if there is more."""
        return self.blocks is not None and len(self.encoded) < _TASKS_ENCODED


class RayCluster:
    """An `Execution` on a Ray cluster. Make it with `connected`."""

    def __init__(self, ray: Any):
        self._ray = ray
        task = functools.partial(ray.remote, max_retries=_RETRIES)
        self._sample = task(num_cpus=1, num_returns=2)(tasks.sample_file)
        # An environment of their own gives encoders processes of their own, which keep the words
        # that they know. Threads would only compete with the tasks on the node's other CPUs.
        self._encode = task(
            num_cpus=1,
            num_returns=2,
            runtime_env={"env_vars": {"TOKENIZERS_PARALLELISM": "false"}},
        )(tasks.encode)
        # A reader that waits for encoders must not hold the CPU that these need, nor a shard wait
        # behind the blocks of the next ones.
        beside = functools.partial(task, num_cpus=0, scheduling_strategy="SPREAD")
        self._read = beside(
            num_returns="streaming", _generator_backpressure_num_objects=_TASKS_READ
        )(tasks.read_file)
        self._write = beside()(tasks.write)
        self._look = beside()(tasks.look)
        self._counted = -_CORES_COUNTED_SECONDS
        self._count = 0

    @property
    def _cores(self) -> int:
        """The CPUs of the cluster, a while ago at most."""
        now = time.monotonic()
        if now - self._counted >= _CORES_COUNTED_SECONDS:
            self._count = int(self._ray.cluster_resources().get("CPU", 0))
            self._counted = now
        return max(1, self._count)

    def check(self, inputs: Inputs, folder: Place) -> None:
        """Each node sees the inputs and the folder, and has the versions that are here."""
        paths = [path.absolute() for file in inputs.files for path in disk_files(file)]
        remote = [path for path in paths if isinstance(path, BucketPath)]
        # Of a bucket's, one shows what all do: that the node may read there.
        looked_at: list[Place] = [path for path in paths if isinstance(path, Path)]
        looked_at += remote[:1]
        sizes = {path: path.stat().st_size for path in looked_at}
        here = tasks.versions()
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        if not any(node["Resources"].get("CPU") for node in nodes):
            raise UserError("cluster: no node has a CPU for tasks; start one with `ray start`")
        on_node = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        with _probe(folder) as probe:
            found = [
                self._look.options(scheduling_strategy=on_node(node["NodeID"], soft=False)).remote(
                    sizes, probe
                )
                for node in nodes
            ]
            for node, (there, wrong) in zip(nodes, self._ray.get(found), strict=True):
                name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                if wrong is not None:
                    raise UserError(
                        f"{name}: {wrong}; inputs and output must lie where all nodes see them"
                    )
                for package, version in here.items():
                    if there[package] != version:
                        raise UserError(
                            f"{name}: {package} {there[package]} there and {version} here; install "
                            "the same on all nodes, or the bytes could differ"
                        )

    def sample(self, inputs: Inputs, most_bytes: int, progress: ByteProgress) -> Sample:
        """See `Execution`. A task reads a file; what it finds is a sample itself."""
        sample = Sample(most_bytes)
        read = CandidateReader(inputs.field, inputs.held_out_below)
        waiting: collections.deque[tuple[int, Any, Any]] = collections.deque()
        done = 0

        def take() -> None:
            nonlocal done
            size, found, problem = waiting.popleft()
            self._wait([problem])
            problem = self._ray.get(problem)
            inputs.check([] if problem is None else [problem])
            sample.merge(self._ray.get(found))
            done += size
            progress.to(done)

        for file in inputs.files:
            while len(waiting) > 2 * self._cores:
                take()
            found, problem = self._sample.remote(
                _absolute(file), read, most_bytes, sample.limit, inputs.stop_on_error
            )
            waiting.append((input_bytes(file), found, problem))
        while waiting:
            take()
        return sample

    def encoded(
        self, inputs: Inputs, encoder: Encoder, start: tuple[int, int], progress: ByteProgress
    ) -> Iterator[Encoded | FileEnd]:
        """See `Execution`. A few files are read at a time, the first of them being taken from."""
        begins = [0, *itertools.accumulate(map(input_bytes, inputs.files))]
        unread = collections.deque(range(start[0], len(inputs.files)))
        window: collections.deque[_File] = collections.deque()
        encoder = self._ray.put(encoder)
        running: set[Any] = set()  # what tasks will give that encode blocks
        while unread or window:
            while unread and self._may_open(window):
                number = unread.popleft()
                begin = start[1] if number == start[0] else 0
                file = _absolute(inputs.files[number])
                read = self._read.remote(number, file, inputs.field, begin, _BLOCKS_A_TASK)
                window.append(_File(number, read))
            self._encode_what_is_read(window, running, encoder)
            while window and window[0].encoded and window[0].encoded[0][0] not in running:
                summaries, tokens = window[0].encoded.popleft()
                for number, found in enumerate(self._ray.get(summaries)):
                    if isinstance(found, FileEnd):
                        window.popleft()
                        yield found
                    else:
                        progress.to(begins[window[0].number] + found.bytes)
                        place = tokens, number
                        yield Encoded(window[0].number, found.block, found.item, place)

    def _may_open(self, window: Sequence[_File]) -> bool:
        """Whether another file is to be read; one that is read through takes no reader."""
        readers = 2 + self._cores // _CORES_A_READER
        return (
            sum(file.blocks is not None for file in window) < readers
            and sum(len(file.encoded) for file in window) < readers * _TASKS_ENCODED
        )

    def _encode_what_is_read(
        self, window: Sequence[_File], running: set[Any], encoder: Any
    ) -> None:
        """Waits for a block that is read or encoded, and has those encoded that are read.

        Nothing is awaited where the first file's next block is encoded already.
        """
        most = _TASKS_A_CORE * self._cores
        reading = [file for file in window if file.has_room]
        awaited = [*running, *(file.blocks for file in reading if len(running) < most)]
        head = window[0]
        if not (head.encoded and head.encoded[0][0] not in running):
            self._wait(awaited)
        if awaited:
            done, _ = self._ray.wait(
                awaited, num_returns=len(awaited), timeout=0, fetch_local=False
            )
            running.difference_update(done)
        for file in reading:
            while file.has_room and len(running) < most and self._is_ready(file.blocks):
                try:
                    read = next(file.blocks)
                except StopIteration:
                    file.blocks = None
                else:
                    summaries, tokens = self._encode.remote(encoder, read)
                    file.encoded.append((summaries, tokens))
                    running.add(summaries)

    def _wait(self, awaited: list[Any]) -> None:
        """Waits for one of them, as long as there is anyone to do it."""
        while not self._ray.wait(awaited, timeout=_PATIENCE_SECONDS, fetch_local=False)[0]:
            if not self._ray.cluster_resources().get("CPU"):
                raise UserError(
                    "cluster: no node is left that has a CPU for tasks; start one, and run this "
                    "again to resume from what is finished"
                )

    def _is_ready(self, blocks: Any) -> bool:
        return bool(self._ray.wait([blocks], timeout=0, fetch_local=False)[0])

    def shards(
        self, folder: Place, dtype: np.dtype, splits: Mapping[str, SplitProgress]
    ) -> "_ClusterShards":
        """See `Execution`. `folder` is in a bucket, or "data" in the one that was checked."""
        numbers = {name: len(split.shards) for name, split in splits.items()}
        target = folder if isinstance(folder, BucketPath) else folder.parent
        return _ClusterShards(self._write, target, numbers)


class _ClusterShards:
    """Holds references to the tokens of the next shards, and which of their documents go there."""

    def __init__(self, write: Any, folder: Place, numbers: dict[str, int]):
        self._write = write
        self._folder = folder
        self._numbers = numbers
        # By reference, of each block that was encoded with others: its number among them.
        self._chosen: dict[Any, dict[int, tasks.Chosen]] = {}

    def add(self, tokens: tuple[Any, int], chosen: tasks.Chosen) -> None:
        reference, number = tokens
        self._chosen.setdefault(reference, {})[number] = chosen

    def cut(self) -> Future[dict[str, ShardRecord]]:
        blocks = [block for of_task in self._chosen.values() for block in of_task.values()]
        names = {}
        for split, number in self._numbers.items():
            if any(of_block[split].any() for of_block in blocks):
                names[split] = shard_name(split, number)
                self._numbers[split] += 1
        if not names:
            nothing: Future[dict[str, ShardRecord]] = Future()
            nothing.set_result({})
            return nothing
        chosen = [*self._chosen.values()]
        written = self._write.remote(self._folder, names, chosen, *self._chosen)
        self._chosen = {}
        return written.future()


@contextlib.contextmanager
def _probe(folder: Place) -> Iterator[Place]:
    """A file for the nodes to look for."""
    if isinstance(folder, BucketPath):
        probe = folder / ".partial" / "seen-by-all"
        probe.write_bytes(b"")
        try:
            yield probe
        finally:
            probe.unlink(missing_ok=True)
        return
    with tempfile.NamedTemporaryFile(dir=folder, prefix="seen-by-all-") as file:
        yield Path(file.name)


def _absolute(file: InputFile) -> InputFile:
    """A node has another working folder."""
    return dataclasses.replace(file, path=file.path.absolute())
