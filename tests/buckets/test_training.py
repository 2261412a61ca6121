"""Runs whose data, start and workdir are in buckets, by the commands that a user gives."""

import json
import os
import socket
import subprocess

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mosaicbert_jax import load_run
from mosaicbert_jax.commands.cli import main
from mosaicbert_jax.storage import working_copy
from tests.buckets.conftest import uploaded
from tests.conftest import QUICK_COMPILE, ROOT, run_train

pytestmark = pytest.mark.one_end

SHORT = (
    "train.duration=6ba",
    "train.batch_tokens=512",
    "train.microbatch_tokens=512",
    "checkpoint.every=2ba",
    "eval.every=6ba",
    "eval.max_tokens=1000",
)


def train(workdir, data, *settings, config="tiny"):
    words = [f"--config.{setting}" for setting in settings]
    main(
        [
            "train",
            "--config",
            config,
            "--workdir",
            str(workdir),
            f"--config.data.path={data}",
            *words,
        ]
    )


def arrays_of(folder, step):
    with ocp.StandardCheckpointer() as checkpointer:
        found = [
            checkpointer.restore((folder / "checkpoints" / str(step) / part).absolute())
            for part in ("model", "optimizer")
        ]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(found)]


@pytest.fixture
def run(place, dataset, monkeypatch):
    """The URL of a run of six steps, whose data are in the same bucket."""
    monkeypatch.setattr(working_copy, "SYNC_SECONDS", 0.1)
    data = uploaded(dataset, place / "data")
    train(place / "run", data, *SHORT)
    return place / "run"


def test_a_run_in_a_bucket(run, place, dataset, tmp_path, capsys, local_cache):
    train(tmp_path / "local", dataset, *SHORT)
    found = working_copy.read_copy(run, None, ("model", "optimizer"))
    for one, other in zip(arrays_of(found, 6), arrays_of(tmp_path / "local", 6), strict=True):
        np.testing.assert_array_equal(one, other)
    names = run.files()
    steps = {name.split("/")[1] for name in names if name.startswith("checkpoints/")}
    assert steps == {"4", "6"}  # checkpoint.keep
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert any(name.startswith("tensorboard/") for name in names)
    # It resumes on another machine, which has the checkpoint alone.
    train(run, place / "data", *SHORT[1:], "train.duration=6ba")
    told = capsys.readouterr().out
    assert "This run is complete." in told
    assert f"Try: mosaicbert fill-mask {run} " in told

    main(["fill-mask", str(run), "the [MASK] of the union"])
    assert "%" in capsys.readouterr().out
    main(["convert", str(run), "--output", str(place / "exported")])
    assert {"config.json", "model.safetensors"} <= (place / "exported").files().keys()
    local, remote = load_run(tmp_path / "local"), load_run(str(place / "exported"))
    tokens = np.arange(8)[None] + 5
    np.testing.assert_allclose(local(tokens, None), remote(tokens, None), atol=1e-5)
    main(["report", str(run), str(tmp_path / "local"), "--output", str(place / "page.html")])
    assert "<html" in (place / "page.html").read_text()
    with pytest.raises(SystemExit):
        main(["convert", str(run), "--output", str(place / "exported")])
    assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_finetuning_from_and_into_a_bucket(run, place, capsys):
    rows = [f"the {word} {n},{word}" for n in range(20) for word in ("war", "peace")]
    (place / "labeled.csv").write_bytes("\n".join(["text,label", *rows]).encode())
    settings = ("init_from=" + str(run), "train.duration=2ba", "data.max_seq_len=16")
    train(place / "tuned", place / "labeled.csv", *settings, config="finetune")
    assert "results.json" in (place / "tuned").files()
    main(["predict", str(place / "tuned"), str(place / "labeled.csv")])
    assert len(capsys.readouterr().out.splitlines()) >= 40


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_decay_of_a_run_in_a_bucket(place, dataset, monkeypatch):
    monkeypatch.setattr(working_copy, "SYNC_SECONDS", 0.1)
    stable = (
        *SHORT,
        "optimizer.schedule=constant",
        "optimizer.warmup=0.1",
        "checkpoint.keep_stable=3",
    )
    train(place / "stable", dataset, *stable)
    decay = (
        *SHORT,
        "optimizer.schedule=decay",
        f"init_from={place / 'stable'}",
        "init_from_step=4",
    )
    train(place / "decay", dataset, *decay)
    assert "checkpoints/6/digests.json" in (place / "decay").files()


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_two_processes_of_one_machine_share_a_workdir_in_a_bucket(store, place, dataset, tmp_path):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{one.getsockname()[1]}"

    def both(workdir) -> list[tuple[int, str]]:
        processes = [
            subprocess.Popen(
                run_train(workdir, dataset, *SHORT),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={
                    **os.environ,
                    "XLA_FLAGS": QUICK_COMPILE,
                    "JAX_COORDINATOR_ADDRESS": address,
                    "JAX_NUM_PROCESSES": "2",
                    "JAX_PROCESS_ID": str(index),
                },
            )
            for index in range(2)
        ]
        told = [process.communicate(timeout=120)[0] for process in processes]
        return [(one.returncode, text) for one, text in zip(processes, told, strict=True)]

    assert [status for status, _ in both(place / "run")] == [0, 0]
    assert "checkpoints/6/digests.json" in (place / "run").files()
    (first, told), (second, _) = both("s3://no-such-bucket/run")
    assert (first, second) == (2, 2)
    assert "error: s3://no-such-bucket/run/.lease: no such bucket" in told


def test_mistakes(place, capsys):
    for words, fact in (
        (["fill-mask", str(place / "none"), "[MASK]"], f"{place}/none: nothing is there"),
        (["report", str(place / "none"), "--output", "x.html"], "nothing is there"),
        (
            ["train", "--config", "tiny", "--workdir", "run", f"--config.data.path={place}/none"],
            "is not a data set",
        ),
        (["prepare", "--input", f"{place}/*.txt", "--output", "x"], "no file is there"),
        (["prepare", "--input", f"{place}/none.txt", "--output", "x"], "no file is there"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        error = capsys.readouterr().err
        assert ended.value.code == 2
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert fact in error, error
