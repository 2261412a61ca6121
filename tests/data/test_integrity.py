"""Damage to a data set's files is found by digest, and what is left can be trained on."""

import hashlib
import pickle

import numpy as np
import pytest

from mosaicbert_jax.data import integrity
from mosaicbert_jax.data.dataset import TokenDataset
from mosaicbert_jax.data.integrity import examine, shards_of
from mosaicbert_jax.data.packing import RowPlanner
from mosaicbert_jax.data.pipeline import Position, batches
from mosaicbert_jax.errors import UserError
from tests.data.test_dataset import write_data_set


@pytest.fixture
def folder(tmp_path):
    """200 sequences in about ten shards; each begins with a token that names it."""
    random = np.random.default_rng(0)
    sequences = [
        np.concatenate([[i], random.integers(0, 1000, length)])
        for i, length in enumerate(random.integers(2, 30, 200))
    ]
    write_data_set(tmp_path / "set", sequences, shard_tokens=333)
    return tmp_path / "set"


def flip(path, place=-3):
    data = bytearray(path.read_bytes())
    data[place] ^= 16
    path.write_bytes(data)


def damaged(folder, seen=None) -> dict[str, str]:
    found = examine(shards_of(folder), seen or {}).damaged
    return {shard.name: reason for shard, reason in found.items()}


@pytest.mark.parametrize("kind", ["tokens", "offsets"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "its sha256 is not the one in dataset.json"),
        (lambda path: path.write_bytes(path.read_bytes()[:-8]), "its sha256 is not"),
        (lambda path: path.unlink(), "it is missing"),
        (lambda path: (path.unlink(), path.mkdir()), "it cannot be read"),
    ],
)
def test_each_damage_to_a_shard_is_found(folder, kind, damage, reason):
    assert damaged(folder) == {}
    damage(folder / f"train-00003.{kind}.npy")
    ((name, why),) = damaged(folder).items()
    assert name == "train-00003"
    assert why.startswith(f"train-00003.{kind}.npy: {reason}")


def test_the_tokenizer_must_be_whole(folder):
    (folder / "tokenizer.json").write_text("{ }")
    with pytest.raises(UserError, match=r"tokenizer\.json: its sha256"):
        shards_of(folder)


def test_only_what_has_changed_is_read_again(folder, monkeypatch):
    seen = examine(shards_of(folder), {}).seen
    read = []

    def file_digest(file, kind):
        read.append(file.name)
        return hashlib.new(kind, file.read())

    shards = shards_of(folder)
    monkeypatch.setattr(integrity.hashlib, "file_digest", file_digest)
    assert examine(shards, seen).damaged == {}
    assert read == []
    path = folder / "train-00002.tokens.npy"
    flip(path)
    found = examine(shards, seen)
    assert [shard.name for shard in found.damaged] == ["train-00002"]
    assert read == [str(path)]
    # What was damaged is so still, without a look at it.
    assert found.damaged == examine(shards, found.seen).damaged
    assert read == [str(path)]


def test_what_is_remembered_may_be_nonsense(tmp_path):
    path = tmp_path / "seen.json"
    for text in ("", "[1]", "\x00\xff"):
        path.write_text(text)
        assert integrity.read_seen(path) == {}
    assert integrity.read_seen(tmp_path / "none") == {}


def test_a_message_names_files_what_they_have_and_the_way_out(folder):
    for number in range(7):
        flip(folder / f"train-{number:05d}.tokens.npy")
    shards = shards_of(folder)
    findings = examine(shards, {})
    lost = sum(shard.sequences for shard in findings.damaged)
    with pytest.raises(UserError) as caught:
        integrity.refuse(findings.damaged, 200)
    text = str(caught.value)
    assert text.startswith(f"7 shards are damaged: {folder}/train-00000 (train-00000.tokens.npy: ")
    assert " and 2 more. Restore" in text
    assert f"--config.data.on_error=skip to train without them, {lost} of 200 sequences" in text
    integrity.refuse({}, 200)


SETTINGS = {"row_length": 128, "rows_per_batch": 4, "seed": 3, "masking_rate": 0.2}


def stream(dataset, position=None, window_size=16):
    found = list(batches(dataset, position=position, epochs=1, window_size=window_size, **SETTINGS))
    unmasked = [unmasked_rows(batch.arrays) for batch in found]
    return found, unmasked


def unmasked_rows(arrays):
    tokens_BL = arrays["tokens_BL"].copy()
    rows_N, slots_N = np.nonzero(arrays["weights_BP"])
    columns_N = arrays["positions_BP"][rows_N, slots_N]
    tokens_BL[rows_N, columns_N] = arrays["labels_BP"][rows_N, slots_N]
    return tokens_BL


def firsts(batch, tokens_BL) -> list[int]:
    """The first token of each sequence, which names it."""
    segments_BL = batch.arrays["segment_ids_BL"]
    before_BL = np.pad(segments_BL, ((0, 0), (1, 0)))[:, :-1]
    return tokens_BL[(segments_BL != before_BL) & (segments_BL > 0)].tolist()


@pytest.mark.parametrize("window_size", [16, 1, 1000])
def test_all_others_are_read_once_an_epoch_and_none_that_is_left_out(folder, window_size):
    """Windows of one sequence: some are left with none."""
    names = ("train-00001", "train-00009", "train-00004")
    dataset = TokenDataset(folder, without=names)
    there = dataset.is_there(np.arange(200))
    lost = sum(s.sequences for s in shards_of(folder) if s.name in names)
    assert dataset.missing == lost == 200 - there.sum() > 30
    found, tokens = stream(dataset, window_size=window_size)
    read = [i for batch, rows in zip(found, tokens, strict=True) for i in firsts(batch, rows)]
    assert sorted(read) == np.flatnonzero(there).tolist()
    assert sum(batch.sequences for batch in found) == there.sum()
    for k in (1, len(found) - 1):
        rest, _ = stream(dataset, found[k - 1].position, window_size)
        assert len(rest) == len(found) - k
        for left, right in zip(rest, found[k:], strict=True):
            assert all(np.array_equal(left.arrays[n], right.arrays[n]) for n in left.arrays)


def test_windows_without_a_lost_sequence_stay_as_they_were(folder):
    """So that a run that skips a shard reads the rest in the same order."""
    whole = TokenDataset(folder)
    one = shards_of(folder)[-1]
    partial = TokenDataset(folder, without=(one.name,))
    same = 0
    for window in range(13):
        rows = [planned(dataset, window).sequences_S.tolist() for dataset in (whole, partial)]
        same += rows[0] == rows[1]
        assert set(rows[1]) <= set(rows[0])
    assert 0 < same < 13


def planned(dataset, window):
    return RowPlanner(dataset, 128, 3, True, 16).plan(0, window)


def test_a_position_past_a_window_that_has_become_shorter_goes_to_the_next(folder):
    dataset = TokenDataset(folder, without=("train-00001", "train-00002", "train-00003"))
    rows = planned(dataset, 2).num_rows
    whole = planned(TokenDataset(folder), 2).num_rows
    assert rows < whole
    there, _ = stream(dataset, Position(0, 2, whole - 1))
    after, _ = stream(dataset, Position(0, 3))
    assert [batch.position for batch in there] == [batch.position for batch in after]
    with pytest.raises(UserError, match="rows in that window"):
        stream(TokenDataset(folder), Position(0, 2, whole))


def test_nothing_left_is_refused(folder):
    names = [shard.name for shard in shards_of(folder)]
    with pytest.raises(UserError, match="the data set has no sequences"):
        stream(TokenDataset(folder, without=names))


def test_copies_leave_out_the_same(folder):
    dataset = TokenDataset(folder, without=("train-00001",))
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.missing == dataset.missing > 0
    there_S = np.flatnonzero(dataset.is_there(np.arange(200)))
    np.testing.assert_array_equal(copy.gather(there_S)[0], dataset.gather(there_S)[0])
    with pytest.raises(IndexError):
        dataset.lengths(np.flatnonzero(~dataset.is_there(np.arange(200)))[:1])
