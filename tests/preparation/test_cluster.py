"""prepare on a Ray cluster of this machine: the bytes are those of `prepare` without one."""

import contextlib
import dataclasses
import gzip
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from campaigns import bucket_servers
from campaigns.bucket_servers import Store
from mosaicbert_jax import buckets
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.preparation import assembly, tasks, unfinished
from mosaicbert_jax.preparation import cluster as on_ray
from mosaicbert_jax.preparation.execution import Encoded
from mosaicbert_jax.preparation.preparation import PrepareOptions, prepare
from mosaicbert_jax.text.encoding import BlockTokens
from tests.preparation.preparation_cases import contents, silent

ray = pytest.importorskip("ray", reason="Ray, of the extra `cluster`, is not installed")
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = pytest.mark.one_end

NODE = {
    "node_ip_address": "127.0.0.1",  # all of it listens there alone
    "num_cpus": 1,
    "include_dashboard": False,
    "object_store_memory": 100 * 2**20,
}
DEATH_IS_NOTICED = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_failure_threshold": 3,
}


class Nodes:
    """A cluster of as many nodes of one CPU as a test wants."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.address = cluster.address

    def be(self, count: int) -> None:
        while len(self.cluster.list_all_nodes()) < count:
            self.cluster.add_node(**NODE)
        for node in list(self.cluster.worker_nodes)[count - 1 :]:
            self.cluster.remove_node(node)

    def kill_one(self) -> None:
        self.cluster.remove_node(next(iter(self.cluster.worker_nodes)), allow_graceful=False)


@pytest.fixture(scope="module")
def store() -> Iterator[Store | None]:
    """A bucket that the nodes know of, which are started after it."""
    if importlib.util.find_spec("s3fs") is None or importlib.util.find_spec("moto") is None:
        yield None
        return
    with bucket_servers.store("s3") as made:
        yield made


@pytest.fixture(scope="module")
def nodes(store) -> Iterator[Nodes]:
    cluster = Cluster(True, head_node_args={**NODE, "_system_config": DEATH_IS_NOTICED})
    yield Nodes(cluster)
    cluster.shutdown()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Little text has several shards, and a file several tasks."""
    monkeypatch.setattr(assembly, "SHARD_BYTES", 150_000)
    monkeypatch.setattr(on_ray, "_BLOCKS_A_TASK", 1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[str, ...]:
    """Files of all formats, of two or three blocks; documents long and short, and duplicates."""
    folder = tmp_path_factory.mktemp("in")
    random = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(3000)])

    def texts(megabytes: float) -> list[str]:
        found, size = list(common), 0
        while size < megabytes * 2**20:
            found.append(" ".join(random.choice(words, int(random.lognormal(4, 1)) + 1)))
            size += len(found[-1])
        return found

    common: list[str] = []
    common = texts(0.1)
    (folder / "a.txt").write_text("\n".join(texts(2.5)))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in [*texts(1.5), ""])
    with pyarrow.CompressedOutputStream(str(folder / "b.jsonl.zst"), "zstd") as file:
        file.write(lines.encode())
    with gzip.open(folder / "c.jsonl.gz", "wt", compresslevel=1) as file:
        file.write("".join(json.dumps({"text": text}) + "\n" for text in texts(1.5)))
    (folder / "d.csv").write_text("id,text\n" + "".join(f"1,{text}\n" for text in texts(1.5)))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts(1.5)}), folder / "e.parquet")
    (folder / "f.txt").write_text("the last one")
    return (str(folder), str(folder / "f.txt"))


@pytest.fixture(scope="module")
def expected(inputs, tmp_path_factory) -> Callable[[PrepareOptions], dict[str, str]]:
    """The files that one machine makes with some options."""
    made: dict[PrepareOptions, dict[str, str]] = {}

    def files(options: PrepareOptions) -> dict[str, str]:
        output = str(tmp_path_factory.mktemp("local") / "out")
        options = dataclasses.replace(options, output="", cluster=None, workers=1)
        if options not in made:
            prepare(dataclasses.replace(options, output=output), silent)
            made[options] = contents(output)
        return made[options]

    return files


@pytest.fixture
def options(inputs, tmp_path, nodes) -> PrepareOptions:
    return PrepareOptions(
        inputs,
        str(tmp_path / "out"),
        validation_fraction=0.2,
        vocab_size=1000,
        long_documents="split",
        cluster=nodes.address,
    )


def partial(options: PrepareOptions) -> Path:
    return unfinished.partial_folder(Path(options.output))


@contextlib.contextmanager
def watched(monkeypatch, at: int = -1, then: Callable[[], None] = lambda: None) -> Iterator[list]:
    """The list gets what is taken; `then` is called before the item of this number."""
    original = on_ray.RayCluster.encoded
    taken: list = []

    def encoded(self, *arguments):
        for item in original(self, *arguments):
            if len(taken) == at:
                then()
            taken.append(item)
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(on_ray.RayCluster, "encoded", encoded)
        yield taken


@pytest.mark.parametrize(
    ("count", "changes"),
    [
        (1, {}),
        (2, {"long_documents": "truncate", "tokenizer": "given", "vocab_size": None}),
        (4, {"deduplicate": False, "tokenizer_model": "bpe", "report": True}),
    ],
)
def test_any_number_of_nodes_gives_the_bytes_of_one_machine(
    options, expected, nodes, tmp_path, monkeypatch, count, changes
):
    monkeypatch.setattr(on_ray, "_BLOCKS_A_TASK", count)
    if changes.get("tokenizer"):
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(2000))]
        (tmp_path / "vocab.txt").write_text("\n".join(words))
        changes = {**changes, "tokenizer": str(tmp_path / "vocab.txt")}
    options = dataclasses.replace(options, **changes)
    nodes.be(count)
    said: list[str] = []
    metadata = prepare(options, said.append)
    assert contents(options.output) == expected(options)
    assert len(metadata.splits["train"].shards) > 4
    assert len(metadata.splits["validation"].shards) > 4
    assert (metadata.dropped_duplicates > 200) == options.deduplicate
    assert metadata.dropped_empty == 1
    assert not partial(options).exists()
    assert not ray.is_initialized()
    prepare(options, said.append)
    assert any("up to date" in line for line in said)


def test_a_node_that_dies_changes_nothing(options, expected, nodes, monkeypatch):
    nodes.be(2)
    with watched(monkeypatch, 6, nodes.kill_one) as taken:
        prepare(options, silent)
    assert len(taken) > 12
    assert contents(options.output) == expected(options)


def interrupted(options: PrepareOptions, monkeypatch) -> None:
    """A preparation with Ctrl-C when some shards are finished."""
    original = unfinished.Workspace.save
    calls = []

    def save(self, *arguments):
        calls.append(None)
        if len(calls) == 5:
            raise KeyboardInterrupt
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(unfinished.Workspace, "save", save)
        with pytest.raises(KeyboardInterrupt, match="the same command resumes behind them"):
            prepare(options, silent)


def test_text_and_data_may_lie_in_a_bucket(options, expected, nodes, store, monkeypatch, tmp_path):
    """Of a preparation that is interrupted, and resumed by a machine that has nothing of it."""
    if store is None:
        pytest.skip("s3fs and moto, of the extra `dev`, are not installed")
    nodes.be(2)
    folder, last = map(Path, options.inputs)
    names = [path.name for path in folder.iterdir()]
    text, output = (buckets.place(store.url(name)) for name in ("text", "data"))
    buckets.upload_all(folder, text, names)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    given = dataclasses.replace(
        options, inputs=(str(text), f"{text}/{last.name}"), output=str(output)
    )

    def interrupt():
        raise KeyboardInterrupt

    with watched(monkeypatch, 8, interrupt), pytest.raises(KeyboardInterrupt):
        prepare(given, silent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    prepare(given, silent)
    found = {
        name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in output.files()
    }
    wanted = dict(expected(options))
    assert found.pop("dataset.json") != wanted.pop("dataset.json")  # which names the sources
    assert found == wanted


def test_an_interrupted_preparation_resumes(options, expected, nodes, monkeypatch):
    """Behind the shards that are finished, which stay as they are."""
    nodes.be(2)
    interrupted(options, monkeypatch)
    progress = json.loads((partial(options) / "progress.json").read_text())["progress"]
    shards = [shard["name"] for split in progress["splits"].values() for shard in split["shards"]]
    data = partial(options) / "data"
    written = {
        path.name: path.stat().st_mtime_ns
        for path in data.glob("*.npy")
        if path.name.split(".")[0] in shards
    }
    assert len(shards) == 6
    with watched(monkeypatch) as taken:
        prepare(options, silent)
    begin = progress["file"], progress["block"]
    assert begin > (0, 0)
    assert all((item.file, item.block) >= begin for item in taken if isinstance(item, Encoded))
    for name, modified in written.items():
        assert (Path(options.output) / name).stat().st_mtime_ns == modified
    assert contents(options.output) == expected(options)


def test_one_machine_resumes_what_a_cluster_began(options, expected, nodes, monkeypatch):
    nodes.be(1)
    interrupted(options, monkeypatch)
    said: list[str] = []
    prepare(dataclasses.replace(options, cluster=None), said.append)
    assert "resuming the unfinished preparation" in said[0]
    assert contents(options.output) == expected(options)


@pytest.mark.parametrize("tokenizer", ["trained", "given"])
def test_what_cannot_be_read_is_told_as_on_one_machine(options, nodes, tmp_path, tokenizer):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n")
    (tmp_path / "a.jsonl").write_text('{"text": "word"}\n{broken\n')
    (tmp_path / "b.txt").write_text("")
    paths = (str(tmp_path / "a.jsonl"), str(tmp_path / "b.txt"))
    options = dataclasses.replace(options, inputs=paths, vocab_size=None, validation_fraction=0)
    if tokenizer == "given":
        options = dataclasses.replace(options, tokenizer=str(tmp_path / "vocab.txt"))
    nodes.be(1)
    with pytest.raises(UserError, match=r"a\.jsonl:2: not JSON"):
        prepare(options, silent)
    assert not partial(options).exists()
    said: list[list[str]] = [[], []]
    skipping = dataclasses.replace(options, on_error="skip")
    metadata = prepare(skipping, said[0].append)
    assert metadata.skipped == {"not JSON": 1, "empty file": 1}
    local = dataclasses.replace(skipping, cluster=None, output=str(tmp_path / "local"))
    prepare(local, said[1].append)
    assert [line.replace("local", "out") for line in said[1]] == said[0]
    assert contents(options.output) == contents(local.output)


def test_a_node_with_other_versions(options, nodes, monkeypatch):
    nodes.be(1)
    monkeypatch.setattr(tasks, "versions", lambda: {"tokenizers": "0.0"})
    message = r"node .*\(127\.0\.0\.1\): tokenizers .* there and 0\.0 here; install the same"
    with pytest.raises(UserError, match=message):
        prepare(options, silent)
    assert not partial(options).exists()


def test_a_folder_that_a_node_cannot_write_to(options, nodes, tmp_path, monkeypatch):
    """What a task raises comes as it would here."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(
        on_ray.RayCluster,
        "shards",
        lambda self, folder, dtype, splits: on_ray._ClusterShards(
            self._write, tmp_path / "file", dict.fromkeys(splits, 0)
        ),
    )
    nodes.be(1)
    with pytest.raises(UserError, match=r"file/writing-.*: Not a directory; .*run it again"):
        prepare(options, silent)


def test_files_as_a_node_sees_them(tmp_path):
    (tmp_path / "work").mkdir()
    probe, path = tmp_path / "work" / "probe", tmp_path / "in.txt"
    assert "another folder" in tasks.look({}, probe)[1]
    probe.write_text("")
    assert "in.txt can't be read there (No such file" in tasks.look({path: 3}, probe)[1]
    path.write_text("1234")
    assert "in.txt has 4 bytes there and 3 here" in tasks.look({path: 3}, probe)[1]
    found, wrong = tasks.look({path: 4}, probe)
    assert wrong is None
    assert found["Python"].startswith("3.")


def test_a_shard_may_be_written_again(tmp_path):
    """As when a node is lost whose task had written it, or a part of it."""
    (tmp_path / "data").mkdir()
    tokens = BlockTokens(np.array([1, 2]), np.array([2, 3, 1]), np.arange(6, dtype=np.uint16))
    some, none = {"train": np.array([False, True])}, {"train": np.array([False, False])}
    chosen = [{1: some, 2: none}, {0: some}]
    arguments = tmp_path, {"train": "train-00007"}, chosen, [None, tokens, tokens], [tokens]
    first = tasks.write(*arguments)
    before = contents(tmp_path / "data")
    assert tasks.write(*arguments) == first
    assert contents(tmp_path / "data") == before
    assert before.keys() == {"train-00007.tokens.npy", "train-00007.offsets.npy"}
    assert np.load(tmp_path / "data" / "train-00007.tokens.npy").tolist() == [2, 3, 4, 5] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "give HOST:PORT of the head of a Ray cluster, or auto"),
        ("head", "give HOST:PORT"),
        ("127.0.0.1:1", r"nobody listens there \(Connection refused\); start Ray"),
        ("[::1]:99999999", "nobody listens there"),
    ],
)
def test_addresses_where_no_cluster_is(options, address, message):
    with pytest.raises(UserError, match=message):
        prepare(dataclasses.replace(options, cluster=address), silent)
    assert not Path(options.output).exists()


def test_options_that_contradict_a_cluster(options, monkeypatch):
    with pytest.raises(UserError, match="workers is for one machine"):
        prepare(dataclasses.replace(options, workers=2), silent)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"a cluster needs Ray.*mosaicbert-jax\[cluster\]"):
        prepare(options, silent)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ray.exceptions.OutOfMemoryError("x"), "ran out of memory on a node; start its Ray with"),
        (ray.exceptions.NodeDiedError("x"), "lost with its node or its process 11 times"),
        (ray.exceptions.WorkerCrashedError(), "lost with its node or its process"),
        (ray.exceptions.RaySystemError("one\ntwo"), "RaySystemError: .*one two; run it again"),
        (
            ray.exceptions.RayTaskError("f", "trace", ValueError("of\nours")).as_instanceof_cause(),
            "a task failed: ValueError: of ours; run it again",
        ),
    ],
)
def test_what_ray_reports_is_one_line(error, message):
    with pytest.raises(UserError, match=message) as raised, on_ray._as_user_errors(ray, "a:1"):
        raise error
    assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(BrokenPipeError), on_ray._as_user_errors(ray, "a:1"):
        raise BrokenPipeError


@pytest.mark.parametrize(
    "error", [ConnectionError("no\nsuch"), RuntimeError("Version mismatch: no\nsuch")]
)
def test_a_cluster_that_cannot_be_joined(options, monkeypatch, error):
    def init(*arguments, **keywords):
        raise error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match=r"can't be joined \(.*no such\); give the address"):
        prepare(options, silent)
    assert not partial(options).exists()


def test_a_cluster_that_loses_its_last_cpu(monkeypatch):
    """It is waited for, and then told."""

    class Ray:
        exceptions = ray.exceptions
        left: ClassVar = [1, 1, 0]

        def remote(self, **options):
            return lambda function: function

        def wait(self, awaited, timeout, fetch_local):
            return [], awaited

        def cluster_resources(self):
            return {"CPU": self.left.pop(0)}

    with pytest.raises(UserError, match="no node is left that has a CPU"):
        on_ray.RayCluster(Ray())._wait(["task"])
    assert not Ray.left
