"""Prepared text whose files are damaged or missing, as train.py's user meets it."""

import shutil

import pytest

from mosaicbert_jax.data.integrity import shards_of
from mosaicbert_jax.preparation import assembly
from mosaicbert_jax.preparation.preparation import PrepareOptions, prepare
from mosaicbert_jax.text import blocks
from tests.data.test_integrity import flip
from tests.pretraining.test_data_settings import final_state, interrupted_at, mixture, rows, train

pytestmark = pytest.mark.one_end

SKIP = "data.on_error=skip"


@pytest.fixture(scope="module")
def shards(corpus, dataset, tmp_path_factory):
    """The corpus in shards of about 60 sequences."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    options = PrepareOptions(
        inputs=(str(corpus),), output=str(folder), tokenizer=str(dataset / "tokenizer.json")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", 2000)
        patch.setattr(assembly, "SHARD_BYTES", 4000)
        prepare(options, lambda line: None)
    assert len(shards_of(folder)) > 4
    return folder


@pytest.fixture
def data(shards, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(shards, tmp_path / "set")


def test_a_flipped_bit_stops_a_run_that_begins_or_goes_on(data, tmp_path, capsys):
    path = data / "train-00001.tokens.npy"
    with interrupted_at(5):
        assert train(tmp_path / "run", f"data.path={data}") == 130
    flip(path)
    capsys.readouterr()
    for name in ("run", "new"):
        assert train(tmp_path / name, f"data.path={data}") == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: 1 shard is damaged: {data}/train-00001 ({path.name}: its ")
        assert "--config.data.on_error=skip" in error
        assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()
    flip(path)
    assert train(tmp_path / "run", f"data.path={data}") == 0
    assert train(tmp_path / "whole", f"data.path={data}") == 0
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")


def test_damaged_shards_are_skipped_and_counted(data, tmp_path, capsys):
    """In both splits; and an interrupted run ends as one that was not."""
    (data / "train-00002.offsets.npy").unlink()
    flip(data / "train-00000.tokens.npy")
    flip(data / "validation-00000.tokens.npy")
    lost = {s.name: s.sequences for s in shards_of(data)}
    count = lost["train-00002"] + lost["train-00000"] + lost["validation-00000"]
    settings = (f"data.path={data}", SKIP)
    assert train(tmp_path / "whole", *settings) == 0
    said = capsys.readouterr().out
    assert f"WITHOUT {count:,} sequences: 3 shards are damaged: {data}/train-00000 (train" in said
    left = sum(n for name, n in lost.items() if name.startswith("train")) - count
    assert f"\n{left + lost['validation-00000']:,} sequences of " in said
    (started,) = [row for row in rows(tmp_path / "whole") if row.get("event") == "started"]
    assert started["skipped_sequences"] == count
    assert started["skipped_shards"].split(", ") == [
        f"{data}/{name}" for name in ("train-00000", "train-00002", "validation-00000")
    ]
    with interrupted_at(5):
        assert train(tmp_path / "run", *settings) == 130
    assert train(tmp_path / "run", *settings) == 0
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")


def test_a_run_goes_on_without_a_shard_that_is_lost_on_the_way(data, tmp_path, capsys):
    with interrupted_at(5):
        assert train(tmp_path / "run", f"data.path={data}") == 130
    for path in data.glob("train-0000[03].tokens.npy"):
        path.unlink()
    assert train(tmp_path / "run", f"data.path={data}", SKIP) == 0
    assert "Resuming from step 3" in capsys.readouterr().out
    assert [row["step"] for row in rows(tmp_path / "run") if "loss" in row] == list(range(1, 9))


def test_a_mixture_skips_too(data, dataset, tmp_path, capsys):
    flip(data / "train-00001.tokens.npy")
    shares = mixture((data, 1), (dataset, 2))
    assert train(tmp_path / "run", shares) == 2
    assert f"1 shard is damaged: {data}/train-00001" in capsys.readouterr().err
    assert train(tmp_path / "run", shares, SKIP) == 0


def test_what_cannot_be_skipped_is_refused(data, tmp_path, capsys):
    def refused(message, *settings):
        assert train(tmp_path / "run", f"data.path={data}", *settings) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "run").exists()

    refused("data.on_error='ignore': choose 'stop' or 'skip'", "data.on_error=ignore")
    for path in data.glob("train-*.tokens.npy"):
        path.unlink()
    refused("nothing is left to train on", SKIP)
    flip(data / "tokenizer.json")
    refused("tokenizer.json: its sha256 is not the one in dataset.json", SKIP)
