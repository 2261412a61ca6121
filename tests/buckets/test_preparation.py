"""`prepare` from and into a bucket: the bytes of a local data set, and it resumes anywhere."""

import gzip
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from campaigns.bucket_servers import Rules
from mosaicbert_jax import buckets
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.preparation import assembly
from mosaicbert_jax.preparation.preparation import PrepareOptions, prepare
from mosaicbert_jax.text import blocks
from tests.buckets.conftest import uploaded


@pytest.fixture
def text(tmp_path, corpus):
    """Files of several kinds."""
    lines = corpus.read_text().splitlines()
    folder = tmp_path / "text"
    folder.mkdir()
    texts = [json.loads(line)["text"] for line in lines]
    (folder / "a.jsonl").write_text("\n".join(lines[:100]))
    with gzip.open(folder / "b.txt.gz", "wt") as file:
        file.write("\n".join(texts[80:200]))
    pq.write_table(pa.table({"text": texts[200:300]}), folder / "c.parquet", row_group_size=17)
    (folder / "d.csv").write_text("text\n" + "\n".join(texts[300:]))
    (folder / "e.json.part").write_text("no text")
    return folder


def prepared(inputs, output, say=lambda line: None, **options):
    options = {"vocab_size": 192, "workers": 1, "max_seq_len": 32} | options
    return prepare(PrepareOptions((str(inputs),), str(output), **options), say=say)


def bytes_of(place):
    return {name: (place / name).read_bytes() for name in place.files()}


@pytest.fixture
def small(monkeypatch):
    """Several blocks a file, and several shards."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2000)
    monkeypatch.setattr(assembly, "SHARD_BYTES", 4000)


def local_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def as_recorded(files):
    """Without what tells the name of the source."""
    record = json.loads(files.pop("dataset.json"))
    for source in record["sources"]:
        source["name"] = ""
    del record["digest"]
    return files, record


def test_the_bytes_are_those_of_a_local_data_set(store, place, text, tmp_path, small, local_cache):
    prepared(text, tmp_path / "local")
    expected = as_recorded(local_bytes(tmp_path / "local"))
    source = uploaded(text, place / "text")
    told = []
    prepared(source, place / "data", told.append)
    assert as_recorded(bytes_of(place / "data")) == expected
    assert any("skipped 1 files of other kinds" in line for line in told)
    assert not (local_cache / "preparing").exists() or not list(
        (local_cache / "preparing").rglob("*.npy")
    )
    told.clear()
    prepared(source, place / "data", told.append)
    assert told == [f"{place}/data is up to date: same options, same inputs"]
    with pytest.raises(UserError, match="a data set with max_seq_len = 32 is there"):
        prepared(source, place / "data", max_seq_len=16)
    with pytest.raises(UserError, match="it would lie in the input"):
        prepared(source, place / "text" / "data")
    pattern = prepared(f"{place}/text/*.jsonl", tmp_path / "pattern")
    assert pattern.sources[0].documents == 100
    one = prepared(place / "text" / "d.csv", tmp_path / "one")
    assert one.sources[0].documents == 100


def test_an_interrupted_preparation_resumes_on_another_machine(
    place, text, tmp_path, small, local_cache, monkeypatch
):
    prepared(text, tmp_path / "local")
    expected = as_recorded(local_bytes(tmp_path / "local"))
    saved, written = assembly.Workspace.save, []

    def save(work, keys=()):
        saved(work, keys)
        if len(work.progress.splits["train"].shards) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(assembly.Workspace, "save", save)
    with pytest.raises(KeyboardInterrupt, match="the same command resumes behind them"):
        prepared(text, place / "data")
    monkeypatch.setattr(assembly.Workspace, "save", saved)
    shutil.rmtree(local_cache)
    from mosaicbert_jax.preparation import shards

    write = shards.write_shard
    monkeypatch.setattr(
        shards, "write_shard", lambda *each: (written.append(each[1]), write(*each))[1]
    )
    (place / "data" / "train-00007.tokens.npy").write_bytes(b"half")
    told = []
    prepared(text, place / "data", told.append)
    assert f"resuming the unfinished preparation in {place}/data" in told
    assert as_recorded(bytes_of(place / "data")) == expected
    assert "train-00000" not in written
    assert "train-00002" in written


def test_what_is_there_is_not_overwritten(place, text):
    (place / "data" / "thesis.txt").write_bytes(b"x")
    with pytest.raises(UserError, match="other files and no data set"):
        prepared(text, place / "data")
    assert (place / "data").files().keys() == {"thesis.txt"}


def test_faults_while_reading_and_writing_change_nothing(
    store, place, text, tmp_path, small, monkeypatch
):
    monkeypatch.setattr(buckets, "PATIENCE", 30.0)
    prepared(text, tmp_path / "local")
    expected = as_recorded(local_bytes(tmp_path / "local"))
    source = uploaded(text, place / "text")
    # gcsfs waits for seconds before it tries again.
    kinds = ("500", "reset", "truncate", *[None] * (9 if store.scheme == "s3" else 40))
    store.proxy.rules = Rules(fault=lambda number, method, path: kinds[number % len(kinds)])
    prepared(source, place / "data")
    store.proxy.rules = Rules()
    assert as_recorded(bytes_of(place / "data")) == expected
    assert len(store.proxy.faults) >= 3


def test_an_input_that_changes_while_it_is_read(place, text, small):
    source = uploaded(text, place / "text")

    def say(line):
        if line.startswith("vocabulary"):
            (source / "d.csv").write_bytes(b"text\nother")

    with pytest.raises(UserError, match="changed while it was being read"):
        prepared(source, place / "data", say, vocab_size=None)
