"""A run resumes with another length or rate where that is asked for, and says so for ever."""

import json

import pytest

from tests.conftest import run_train
from tests.training.test_pretrain import call, rows, train

pytestmark = pytest.mark.one_end

SHORT = ("train.duration=4ba", "checkpoint.every=2ba", "eval.every=100ba")
LONGER = ("train.duration=8ba", "checkpoint.every=2ba", "eval.every=100ba")


@pytest.fixture
def run(dataset, tmp_path, capsys):
    assert train(tmp_path / "run", dataset, *SHORT) == 0
    capsys.readouterr()
    return tmp_path / "run"


def extend(run, dataset, *settings):
    """`train` puts --config. before its settings; the last word is the flag alone."""
    return call([*run_train(run, dataset, *settings)[1:], "--extend"])


def test_a_longer_run_is_refused_with_the_way_out(run, dataset, capsys):
    assert train(run, dataset, *LONGER) == 2
    error = capsys.readouterr().err
    assert "train.duration: '4ba', now '8ba'" in error
    assert "--extend" in error
    assert extend(run, dataset, *LONGER, "seed=3") == 2
    error = capsys.readouterr().err
    assert "seed: 17, now 3" in error
    assert "train.duration" not in error
    assert [row["step"] for row in rows(run) if "loss" in row] == [1, 2, 3, 4]


def test_an_extended_run(run, dataset, capsys):
    settings = (*LONGER, "optimizer.learning_rate=1e-3")
    assert extend(run, dataset, *settings) == 0
    assert "Resuming from step 4" in capsys.readouterr().out
    assert [row["step"] for row in rows(run) if "loss" in row] == list(range(1, 9))
    (event,) = (row for row in rows(run) if row.get("event") == "extended")
    assert event["step"] == 4
    changed = ["optimizer.learning_rate: 0.003, now 0.001", "train.duration: '4ba', now '8ba'"]
    assert event["changed"] == "; ".join(changed)
    first = [{"step": 4, "changed": changed}]
    assert json.loads((run / "config.json").read_text())["history"] == first
    # Its settings are the new ones from now on, and what it was stays known.
    assert train(run, dataset, *settings) == 0
    assert train(run, dataset, *SHORT) == 2
    assert extend(run, dataset, *settings, "train.duration=9ba") == 0
    history = json.loads((run / "config.json").read_text())["history"]
    assert history == [*first, {"step": 8, "changed": ["train.duration: '8ba', now '9ba'"]}]
    assert [row["step"] for row in rows(run) if "loss" in row] == list(range(1, 10))


def test_the_rate_is_that_of_a_run_that_always_had_these_settings(run, dataset, tmp_path):
    assert extend(run, dataset, *LONGER) == 0
    assert train(tmp_path / "whole", dataset, *LONGER) == 0

    def rates(workdir):
        return [row["learning_rate"] for row in rows(workdir) if "loss" in row][4:]

    assert rates(run) == rates(tmp_path / "whole")
