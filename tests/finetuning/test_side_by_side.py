"""A suite whose runs go on side by side: the results of one by one, and what ends it."""

import pathlib
import signal
import subprocess
import time

import pytest

from mosaicbert_jax import UserError
from mosaicbert_jax.finetuning.side_by_side import gpus
from tests.conftest import ROOT, run_train
from tests.finetuning.cases import finetune, pretrained
from tests.finetuning.glue_files import write_glue
from tests.finetuning.test_glue import QUICK


@pytest.fixture(scope="module")
def origin(dataset, tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("side_by_side") / "origin", dataset)


@pytest.fixture
def folder(tmp_path):
    return write_glue(tmp_path / "GLUE")


def wait_until_saved(run: pathlib.Path) -> None:
    """Until a run has its first checkpoint."""
    end = time.monotonic() + 120
    while not any(path.name.isdecimal() for path in run.glob("checkpoints/*")):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_interrupted_and_gone_on_with_it_ends_as_one_by_one(origin, folder, tmp_path):
    settings = (
        *QUICK,
        "tasks=mnli,rte",
        "recipes.mnli.epochs=60",
        "eval.every=60ep",
        "checkpoint.every=30ba",
    )
    assert finetune(tmp_path / "whole", origin, folder, *settings, config="glue") == 0

    suite = tmp_path / "suite"
    settings = (f"init_from={origin}", *settings, "processes=2")
    line = run_train(suite, folder, *settings, config="glue")

    def start():
        return subprocess.Popen(
            line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    process = start()
    wait_until_saved(suite / "mnli" / "19")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130, error
    assert error == "interrupted; the same command goes on from the last checkpoint\n"
    log = suite / "mnli" / "19.log"
    assert log.read_text().endswith("interrupted\n")

    process = start()
    out, error = process.communicate()
    assert process.returncode == 0, error
    assert "Going on from step" in log.read_text()
    for seed in ("19", "717"):
        assert f"rte, seed {seed}, from {suite}/mnli/19: {suite}/rte/{seed}.log tells" in out
    names = ["results.json", *(f"submission/{name}.tsv" for name in ("MNLI-m", "MNLI-mm", "RTE"))]
    for name in names:
        assert (suite / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_that_fails_stops_the_others(origin, folder, tmp_path, capsys):
    path = folder / "RTE" / "dev.tsv"
    path.write_text(path.read_text().replace("not_entailment\n", "perhaps\n", 1))
    settings = (*QUICK, "tasks=sst2,rte", "processes=2", "recipes.sst2.epochs=1000000")
    suite = tmp_path / "suite"
    assert finetune(suite, origin, folder, *settings, config="glue") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: rte, seed 19: {path}:2: unknown label 'perhaps'")
    assert error.count("\n") == 1
    assert (suite / "sst2" / "19.log").read_text().endswith("interrupted\n")

    assert finetune(suite, origin, folder, *QUICK, "processes=0", config="glue") == 2
    assert "processes=0 must be at least 1" in capsys.readouterr().err


def test_a_process_sees_one_gpu():
    assert gpus(2, None, 0) == gpus(2, "", 8) == [None, None]
    assert gpus(2, None, 8) == ["0", "1"]
    assert gpus(3, "6,2, 4,5", 8) == ["6", "2", "4"]
    with pytest.raises(UserError, match="processes=3, each of which wants a GPU, and there are 2"):
        gpus(3, "6,2", 8)
