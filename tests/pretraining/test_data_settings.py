"""data.mixture, data.workers and data_wait_fraction, as train.py's user meets them."""

import hashlib
import itertools
import json
import shutil
import sys
import time
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mosaicbert_jax.commands import train as command
from mosaicbert_jax.preparation.preparation import PrepareOptions, prepare
from mosaicbert_jax.pretraining import pretraining
from mosaicbert_jax.training import loop
from tests.conftest import run_process, run_train

SETTINGS = (
    "train.duration=8ba",
    "train.batch_tokens=512",
    "train.microbatch_tokens=512",
    "checkpoint.every=3ba",
    "eval.every=8ba",
)


@pytest.fixture(scope="module")
def second(corpus, dataset, tmp_path_factory):
    """Another data set with the tokenizer of the first."""
    folder = tmp_path_factory.mktemp("data") / "second"
    options = PrepareOptions(
        inputs=(str(corpus),),
        output=str(folder),
        tokenizer=str(dataset / "tokenizer.json"),
        max_seq_len=64,
    )
    prepare(options, lambda line: None)
    return folder


def train(workdir, data, *overrides):
    """In this process; returns the exit status. `data` is the override that names the data."""
    line = run_train(workdir, "", *SETTINGS, data, *overrides)[1:]
    with mock.patch.object(sys, "argv", line):
        try:
            command.main()
        except SystemExit as ended:
            return ended.code
    return 0


def mixture(*shares):
    return "data.mixture=" + repr(tuple((str(folder), weight) for folder, weight in shares))


def final_state(workdir):
    """Every array of the last checkpoint, its progress and position, and the losses."""
    folder = (workdir / "checkpoints" / "8").absolute()
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = [checkpointer.restore(folder / item) for item in ("model", "optimizer")]
    record = json.loads(next((folder / "progress").iterdir()).read_text())
    record["progress"].pop("seconds")
    losses = [
        (row["step"], row.get("loss"), row.get("eval_loss"))
        for row in rows(workdir)
        if "event" not in row
    ]
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(arrays)], record, losses


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def interrupted_at(step):
    """Ctrl-C in the loop when that many batches have been placed."""
    place, calls = loop.sharding.place_batch, itertools.count()

    def place_or_stop(*arguments):
        if next(calls) >= step:
            raise KeyboardInterrupt
        return place(*arguments)

    return mock.patch.object(loop.sharding, "place_batch", place_or_stop)


@pytest.mark.one_end
def test_a_mixture_interrupted_goes_on_with_the_same_bits(dataset, second, tmp_path, capsys):
    """With other workers before and after, and the folders moved in between."""
    shares = ((dataset, 0.7), (second, 0.3))
    assert train(tmp_path / "whole", mixture(*shares)) == 0
    said = capsys.readouterr().out
    assert f"70.0% of {dataset}, read 1.4" in said
    assert f"30.0% of {second}, read 0.6" in said

    moved = [(shutil.copytree(folder, tmp_path / folder.name), w) for folder, w in shares]
    with interrupted_at(5):
        assert train(tmp_path / "run", mixture(*shares), "data.workers=2") == 130
    assert train(tmp_path / "run", mixture(*moved), "data.workers=0") == 0
    assert "Resuming from step 3" in capsys.readouterr().out
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")

    assert train(tmp_path / "run", mixture((dataset, 7), (second, 3))) == 0  # the same shares
    assert train(tmp_path / "run", mixture((dataset, 0.6), (second, 0.4))) == 2
    error = capsys.readouterr().err
    assert "dataset.mixture.0.weight: 0.7, now 0.6; dataset.mixture.1.weight: 0.3, now 0" in error
    assert train(tmp_path / "run", mixture((second, 0.7), (dataset, 0.3))) == 2
    assert "dataset.mixture.0.digest: '" in capsys.readouterr().err
    assert train(tmp_path / "run", f"data.path={dataset}") == 2
    error = capsys.readouterr().err
    assert "dataset.digest: None, now '" in error
    assert error.count("\n") == 1


def test_a_run_of_before_there_were_mixtures_goes_on(dataset, tmp_path):
    workdir = tmp_path / "run"
    with interrupted_at(4):
        assert train(workdir, f"data.path={dataset}") == 130
    stored = json.loads((workdir / "config.json").read_text())
    del stored["config"]["data"]["mixture"], stored["config"]["data"]["workers"]
    assert set(stored["dataset"]) == {"digest", "max_seq_len"}
    (workdir / "config.json").write_text(json.dumps(stored))
    assert train(workdir, f"data.path={dataset}") == 0
    assert [row["step"] for row in rows(workdir) if "loss" in row] == list(range(1, 9))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("data.mixture=data/a,0.7", "'data/a,0.7' is not a folder with its weight; write --conf"),
        ("data.mixture=('data/a',0.7)", "'data/a' is not a folder with its weight"),
        ("data.mixture=((0.7,'data/a'),)", "(0.7, 'data/a') is not a folder with its weight"),
        ("data.mixture=(('data/a',0.7,1),)", "is not a folder with its weight"),
        ("data.mixture=(('data/a',True),)", "is not a folder with its weight"),
        ("data.mixture=(('data/a',0.7)", "config.data.mixture"),
        ("data.mixture=(('nowhere',0.7),)", "nowhere"),
        ("data.mixture=()", "data.path is not set"),
        ("data.workers=-1", "data.workers=-1 must be at least 0"),
    ],
)
def test_mistakes_are_one_line(data, message, tmp_path, capsys):
    assert train(tmp_path / "run", data) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_path_and_a_mixture(dataset, tmp_path, capsys):
    assert train(tmp_path, f"data.path={dataset}", mixture((dataset, 1))) == 2
    assert "data.mixture are both set" in capsys.readouterr().err


def test_a_mixture_in_a_config_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from mosaicbert_jax import BertConfig\n"
        "from mosaicbert_jax.pretraining.configuration import pretraining\n"
        "def get_config():\n"
        "    config = pretraining(BertConfig())\n"
        "    config.data.mixture = (('data/a', 0.7), ('data/b', 3))\n"
        "    return config\n"
    )
    with mock.patch.object(sys, "argv", ["train.py", f"--config={path}", "--workdir=x"]):
        config, _ = command.parse(sys.argv)
    assert config.data.mixture == (("data/a", 0.7), ("data/b", 3))


def test_damaged_data_in_a_worker_process_is_one_line(dataset, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(dataset, damaged)
    path = damaged / "train-00000.tokens.npy"
    tokens = np.load(path)
    np.save(path, np.full_like(tokens, 60_000))
    # With the digest that it has now, as damage on the way to the disk would leave it.
    record = json.loads((damaged / "dataset.json").read_text())
    (shard,) = record["splits"]["train"]["shards"]
    shard["tokens_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    del record["digest"]
    (damaged / "dataset.json").write_text(json.dumps(record))
    line = run_train(tmp_path / "run", damaged, *SETTINGS, "data.workers=2")
    result = run_process(line)
    assert result.returncode == 2
    assert "a token is not in the vocabulary" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_time_spent_waiting_for_data_is_told(dataset, tmp_path):
    def slow(*arguments, **settings):
        for number, batch in enumerate(batches(*arguments, **settings)):
            if "epochs" not in settings:  # what is trained on, not what is held out
                time.sleep({1: 1.0, 2: 0.5, 3: 0.5, 4: 0.5}.get(number, 0))
            yield batch

    batches = pretraining.batches
    workdir = tmp_path / "run"
    with mock.patch.object(pretraining, "batches", slow):
        assert train(workdir, f"data.path={dataset}", "log.every=4") == 0
    seconds_waited, tokens = {}, 0
    for row in (row for row in rows(workdir) if "loss" in row):
        seconds = (row["tokens"] - tokens) / row["tokens_per_second"]
        seconds_waited[row["step"]] = row["data_wait_fraction"] * seconds
        assert 0 <= row["data_wait_fraction"] <= 1
        tokens = row["tokens"]
    # Batches 2 to 5 are late. The row of a step is written when the next has been dispatched.
    assert list(seconds_waited) == [1, 4, 8]
    assert seconds_waited[1] > 0.9
    assert seconds_waited[4] > 1.4
    assert seconds_waited[8] < 0.7
