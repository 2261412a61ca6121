"""The on-disk format: what the writer writes is what the reader gives, and damage is named."""

import dataclasses
import hashlib
import json
import pickle
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from mosaicbert_jax.data.dataset import (
    DatasetMetadata,
    SourceRecord,
    SplitRecord,
    TokenDataset,
    TokenizerRecord,
)
from mosaicbert_jax.data.shard_files import _allow_open_files
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.preparation.shards import ShardWriter
from mosaicbert_jax.text.vocabulary import SpecialTokenIds, token_dtype


def write_data_set(folder: Path, sequences: list[np.ndarray], shard_tokens: int, batch: int = 7):
    """A data set of the given sequences; the tokenizer file is a stand-in."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(folder, "train", np.uint16)
    for start in range(0, len(sequences), batch):
        some = sequences[start : start + batch]
        writer.add(np.concatenate(some), np.array([len(ids) for ids in some]))
        if writer.buffered_bytes >= 2 * shard_tokens:
            writer.flush()
    shards = writer.close()
    (folder / "tokenizer.json").write_bytes(b"{}")
    metadata = DatasetMetadata(
        folder=folder,
        max_seq_len=128,
        tokenizer=TokenizerRecord(
            "tokenizer.json",
            "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",  # of {}
            1000,
            1024,
            SpecialTokenIds(0, 100, 101, 102, 103),
        ),
        options={"long_documents": "split"},
        sources=(SourceRecord("é.txt", 10, "ab", 1, 1, "CC0", "somebody"),),
        splits={
            "train": SplitRecord(
                3,
                sum(shard.sequences for shard in shards),
                sum(shard.tokens for shard in shards),
                0,
                shards,
            )
        },
        dropped_duplicates=1,
        dropped_empty=2,
    )
    (folder / "dataset.json").write_text(metadata.to_json(), encoding="utf-8")
    return metadata


@pytest.fixture
def sequences() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 1000, length) for length in random.integers(2, 30, 200)]


def test_gather_gives_back_what_was_written(tmp_path, sequences):
    metadata = write_data_set(tmp_path, sequences, shard_tokens=333)
    dataset = TokenDataset(tmp_path)
    assert len(metadata.splits["train"].shards) > 5
    assert len(dataset) == 200
    indices_S = np.random.default_rng(1).integers(0, 200, 500)  # any order, with repetitions
    tokens_T, lengths_S = dataset.gather(indices_S)
    assert tokens_T.dtype == lengths_S.dtype == np.int32
    np.testing.assert_array_equal(tokens_T, np.concatenate([sequences[i] for i in indices_S]))
    np.testing.assert_array_equal(lengths_S, [len(sequences[i]) for i in indices_S])
    np.testing.assert_array_equal(dataset.lengths(indices_S), lengths_S)
    assert dataset.lengths(indices_S).dtype == np.int32
    assert all(array.size == 0 for array in dataset.gather(np.array([], np.int64)))


@pytest.mark.parametrize("bad", [-1, 200])
def test_an_index_outside_is_an_error(tmp_path, sequences, bad):
    write_data_set(tmp_path, sequences, shard_tokens=333)
    dataset = TokenDataset(tmp_path)
    with pytest.raises(IndexError):
        dataset.lengths(np.array([0, bad]))
    with pytest.raises(IndexError):
        dataset.gather(np.array([0, bad]))


def test_a_shard_is_what_was_added_between_flushes(tmp_path, sequences):
    writer = ShardWriter(tmp_path, "train", np.uint16)
    for ids in sequences[:3]:
        writer.add(ids, np.array([len(ids)]))
    assert writer.buffered_bytes == 2 * sum(map(len, sequences[:3]))
    writer.flush()
    writer.flush()  # nothing was added
    assert writer.buffered_bytes == 0
    later = ShardWriter(tmp_path, "train", np.uint16, writer.records)
    later.add(np.concatenate(sequences[3:5]), np.array([len(ids) for ids in sequences[3:5]]))
    records = later.close()
    assert [shard.name for shard in records] == ["train-00000", "train-00001"]
    assert [shard.sequences for shard in records] == [3, 2]
    assert records[0] == writer.records[0]
    written = [np.load(tmp_path / f"{shard.name}.tokens.npy") for shard in records]
    np.testing.assert_array_equal(np.concatenate(written), np.concatenate(sequences[:5]))
    assert (
        hashlib.sha256((tmp_path / "train-00001.tokens.npy").read_bytes()).hexdigest()
        == records[1].tokens_sha256
    )


def test_writer_refuses_what_does_not_fit(tmp_path):
    writer = ShardWriter(tmp_path, "train", np.uint16)
    for tokens_T, lengths_S in (
        ([1, 2, 3], [2]),  # lengths don't add up
        ([1, 2], [2, 0]),  # an empty sequence
        ([70_000, 2], [2]),  # beyond uint16
        ([-1, 2], [2]),
    ):
        with pytest.raises(ValueError, match=r"length|fit"):
            writer.add(np.array(tokens_T), np.array(lengths_S))
    assert writer.close() == ()


def test_token_dtype_is_the_narrowest():
    assert token_dtype(2**16) == np.uint16
    assert token_dtype(2**16 + 64) == np.uint32


def test_large_ids_survive(tmp_path):
    writer = ShardWriter(tmp_path, "train", np.uint32)
    writer.add(np.array([2**20, 2**16, 5]), np.array([3]))
    (shard,) = writer.close()
    assert np.load(tmp_path / f"{shard.name}.tokens.npy").tolist() == [2**20, 2**16, 5]


def test_metadata_round_trip_and_digest(tmp_path, sequences):
    written = write_data_set(tmp_path / "a", sequences, shard_tokens=333)
    read = DatasetMetadata.load(tmp_path / "a")
    assert read == written
    assert read.vocab_size == 1000
    assert read.padded_vocab_size == 1024
    assert read.special_token_ids.mask == 103
    assert read.tokenizer_path == tmp_path / "a" / "tokenizer.json"
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert DatasetMetadata.load(tmp_path / "b").digest == read.digest
    assert dataclasses.replace(read, max_seq_len=64).digest != read.digest


def test_pickling_opens_the_files_again(tmp_path, sequences):
    write_data_set(tmp_path, sequences, shard_tokens=333)
    dataset = TokenDataset(tmp_path)
    data = pickle.dumps(dataset)
    assert len(data) < 2000
    indices_S = np.arange(200)
    for left, right in zip(
        pickle.loads(data).gather(indices_S), dataset.gather(indices_S), strict=True
    ):
        np.testing.assert_array_equal(left, right)


def test_missing_and_wrong_files_are_named(tmp_path, sequences):
    folder = tmp_path / "data"
    with pytest.raises(UserError, match=r"dataset\.json: no such file"):
        TokenDataset(folder)
    write_data_set(folder, sequences, shard_tokens=333)
    with pytest.raises(UserError, match="no split 'validation', only train"):
        TokenDataset(folder, "validation")
    tokens = folder / "train-00002.tokens.npy"
    whole = tokens.read_bytes()
    of_python_2 = whole.replace(
        b",), } ", b"L,), }", 1
    )  # its header, which NumPy reads with a warning
    for damaged in (whole[:-2], whole + b"xx", b"", b"nonsense", of_python_2):
        tokens.write_bytes(damaged)
        with pytest.raises(UserError, match=r"train-00002\.tokens\.npy"):
            TokenDataset(folder)
    tokens.unlink()
    with pytest.raises(UserError, match=r"train-00002\.tokens\.npy: it is missing"):
        TokenDataset(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "format_version is None"),
        ('{"format_version": 99}', "format_version is 99"),
        ('{"format_version": 1}', "KeyError"),
    ],
)
def test_damaged_metadata(tmp_path, text, message):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=message):
        TokenDataset(tmp_path)


def test_changed_metadata_is_told_by_its_own_digest(tmp_path, sequences):
    write_data_set(tmp_path, sequences, shard_tokens=333)
    path = tmp_path / "dataset.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"max_seq_len": 128', '"max_seq_len": 129'), encoding="utf-8")
    with pytest.raises(UserError, match=r"dataset\.json: it is not what its own digest says"):
        TokenDataset(tmp_path)
    # One that an earlier release wrote has none.
    path.write_text(json.dumps({k: v for k, v in json.loads(text).items() if k != "digest"}))
    assert TokenDataset(tmp_path).metadata.to_json() == text


@pytest.mark.parametrize("key", ["file", "name"])
def test_no_file_outside_of_the_folder_is_read(tmp_path, sequences, key):
    write_data_set(tmp_path / "set", sequences, shard_tokens=333)
    record = json.loads((tmp_path / "set" / "dataset.json").read_text())
    named = record["tokenizer"] if key == "file" else record["splits"]["train"]["shards"][0]
    for elsewhere in (f"../set/{named[key]}", f"{tmp_path}/set/{named[key]}", ".."):
        (tmp_path / "set" / "dataset.json").write_text(
            json.dumps(record).replace(json.dumps(named[key]), json.dumps(elsewhere), 1)
        )
        with pytest.raises(UserError, match="is not the name of a file of this folder"):
            DatasetMetadata.load(tmp_path / "set")


def test_many_shards_raise_the_limit_on_open_files(monkeypatch):
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.append(pair))
    _allow_open_files(2)  # of one data set of many
    assert limits == [(4096, 4096)]
    with pytest.raises(UserError, match="needs 4000 open files and this machine allows 4096"):
        _allow_open_files(4000)
