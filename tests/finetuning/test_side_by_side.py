"""What ends a suite whose runs go on side by side; for its results see test_glue.py."""

import re
import time

import pytest

from mosaicbert_jax import UserError
from mosaicbert_jax.finetuning import side_by_side
from tests.finetuning.cases import finetune, pretrained
from tests.finetuning.glue_files import write_glue
from tests.finetuning.test_glue import QUICK, TWO_SEEDS


@pytest.fixture(scope="module")
def origin(dataset, tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("side_by_side") / "origin", dataset)


@pytest.fixture
def folder(tmp_path):
    return write_glue(tmp_path / "GLUE")


def test_an_interrupted_suite_stops_its_runs_with_their_checkpoints(
    origin, folder, tmp_path, capsys, monkeypatch
):
    run, end = tmp_path / "suite" / "sst2" / "19", time.monotonic() + 300

    def sleep_or_interrupt(seconds):
        assert time.monotonic() < end
        if any(path.name.isdecimal() for path in run.glob("checkpoints/*")):
            raise KeyboardInterrupt
        time.sleep(seconds)

    monkeypatch.setattr(side_by_side, "sleep", sleep_or_interrupt)
    settings = (*QUICK, "tasks=sst2", "processes=2", "recipes.sst2.epochs=1000000")
    assert finetune(tmp_path / "suite", origin, folder, *settings, config="glue") == 130
    said = capsys.readouterr()
    assert said.err == "interrupted; the same command resumes from the last checkpoint\n"
    log = run.with_name("19.log")
    assert f"sst2, seed 19, from {origin}: {log} has its output" in said.out
    text = log.read_text()
    assert "Compiling the training step" in text
    assert text.endswith(", which is saved; the same command resumes\n")
    assert not (run / "results.json").exists()


def test_a_run_that_fails_ends_the_suite_with_its_message(origin, folder, tmp_path, capsys):
    path = folder / "RTE" / "dev.tsv"
    path.write_text(path.read_text().replace("not_entailment\n", "perhaps\n", 1))
    settings = (*QUICK, *TWO_SEEDS, "tasks=rte", "processes=2")
    assert finetune(tmp_path / "suite", origin, folder, *settings, config="glue") == 2
    error = capsys.readouterr().err
    # Whichever of the two is first to say it.
    assert re.match(rf"error: rte, seed (19|717): {path}:2: unknown label 'perhaps'", error)
    assert error.count("\n") == 1

    assert finetune(tmp_path / "none", origin, folder, "processes=0", config="glue") == 2
    assert "processes=0 must be at least 1" in capsys.readouterr().err


def test_a_process_sees_one_gpu():
    gpus = side_by_side.gpus
    assert gpus(2, None, 0) == gpus(2, "", 8) == [None, None]
    assert gpus(2, None, 8) == ["0", "1"]
    assert gpus(3, "6,2, 4,5", 8) == ["6", "2", "4"]
    with pytest.raises(UserError, match="processes=3, each of which wants a GPU, and there are 2"):
        gpus(3, "6,2", 8)
