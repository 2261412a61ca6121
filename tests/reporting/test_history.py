"""What is read of a run, at any moment of its life."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mosaicbert_jax import UserError
from mosaicbert_jax.reporting.history import History, State
from mosaicbert_jax.storage.workdir import is_locked, locked
from tests.reporting.cases import evaluation, event, row, write_run


def read(folder):
    return History.read(folder, "run")


def test_rows_are_told_apart(tmp_path):
    rows = [event(0, "started"), row(1), row(2, loss=None), evaluation(2), event(2, "rollback")]
    run = read(write_run(tmp_path / "run", rows))
    assert [one["step"] for one in run.training] == [1, 2]
    assert [one["eval_loss"] for one in run.evaluations] == [7.125]
    assert [one["event"] for one in run.events] == ["started", "rollback"]
    np.testing.assert_array_equal(run.column("loss"), [8.99, np.nan])
    assert run.last("loss") == 8.99
    assert run.score == "masked_accuracy"


def test_a_half_written_last_line_is_normal_and_others_are_counted(tmp_path):
    folder = write_run(tmp_path / "run", [row(1), row(2)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(3))[:40])
    run = read(folder)
    assert [one["step"] for one in run.training] == [1, 2]
    assert run.unread == 0
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('\n["no row"]\n' + json.dumps(row(4)))  # whole, its end of line to come
    run = read(folder)
    assert [one["step"] for one in run.training] == [1, 2, 4]
    assert run.unread == 2


@pytest.mark.parametrize(
    ("rows", "state"),
    [
        ([], State.NOT_RUNNING),
        ([event(0, "started"), row(1)], State.NOT_RUNNING),
        ([event(0, "started"), row(50), event(50, "saving"), event(50, "stopped")], State.STOPPED),
        (
            [event(0, "started"), event(50, "stopped"), event(50, "resumed"), row(51)],
            State.NOT_RUNNING,
        ),
        ([event(0, "started"), row(50, loss=None)], State.NOT_FINITE),
        (
            [event(0, "started"), row(100), event(100, "saving"), event(100, "finished")],
            State.FINISHED,
        ),
        ([row(100)], State.FINISHED),
    ],
)
def test_how_a_run_ended(tmp_path, rows, state):
    assert read(write_run(tmp_path / "run", rows)).state == state


def test_a_running_run_holds_its_lock_and_keeps_it(tmp_path):
    folder = write_run(tmp_path / "run", [event(50, "stopped")])
    assert read(folder).state == State.STOPPED
    assert not (folder / ".lock").exists()  # looking leaves no trace
    with locked(folder):
        assert read(folder).state == State.RUNNING
        assert is_locked(folder)
        with pytest.raises(UserError, match="in use"), locked(folder):
            pass
    assert read(folder).state == State.STOPPED
    with locked(folder):  # nor does looking keep a run out
        pass


def test_what_is_left_goes_by_the_pace_of_the_recent_rows(tmp_path):
    slow = [row(step, seconds=100.0 * step) for step in range(1, 11)]
    fast = [row(step, seconds=1000.0 + 2.0 * (step - 10)) for step in range(11, 41)]
    run = read(write_run(tmp_path / "run", slow + fast))
    assert run.left("seconds") == pytest.approx(2.0 * 60)
    assert run.left("dollars") is None
    assert read(write_run(tmp_path / "one", [row(1)])).left("seconds") is None
    done = read(write_run(tmp_path / "done", [row(99), row(101)]))
    assert done.left("seconds") == 0


def test_values_between_rows(tmp_path):
    run = read(write_run(tmp_path / "run", [row(10), row(20)]))
    np.testing.assert_allclose(run.at_steps(np.array([10, 15, 99]), "tokens"), [1e4, 1.5e4, 2e4])


@pytest.mark.parametrize("results", ["{", "[]"])
def test_results_that_cannot_be_read(tmp_path, results):
    folder = write_run(tmp_path / "run", [row(1)])
    (folder / "results.json").write_text(results)
    with pytest.raises(UserError, match=r"results\.json cannot be read: "):
        read(folder)


def test_looking_needs_no_device():
    """A page is written beside a run that has all of a GPU's memory."""
    code = (
        "import mosaicbert_jax.reporting.writing, jax._src.xla_bridge as bridge;"
        "assert not bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
