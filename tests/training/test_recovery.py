"""Losses that diverge, damaged checkpoints, disks that fail, and hangs."""

import contextlib
import json
import math
import shutil
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from mosaicbert_jax import BertConfig
from mosaicbert_jax.pretraining import pretraining
from mosaicbert_jax.pretraining.configuration import pretraining as pretraining_config
from mosaicbert_jax.storage import checkpoint_files
from mosaicbert_jax.training import checkpoints, loop
from mosaicbert_jax.training.recovery import Health
from mosaicbert_jax.training.step import masked_lm
from tests.conftest import run_process, run_train
from tests.pretraining.test_data_settings import interrupted_at
from tests.training.test_pretrain import command, rows, train

STEPS = 18
SETTINGS = (f"train.duration={STEPS}ba", "checkpoint.every=5ba", "eval.every=100ba", "log.every=1")


@pytest.fixture(scope="module")
def clean(dataset, tmp_path_factory):
    """A run without incidents, and what the batches of its steps add up to, by step."""
    folder, place, found = (
        tmp_path_factory.mktemp("recovery") / "clean",
        loop.sharding.place_batch,
        [],
    )

    def noted(mesh, arrays):
        if "positions_BP" in arrays:
            found.append(int(arrays["tokens_BL"].sum()))
        return place(mesh, arrays)

    with mock.patch.object(loop.sharding, "place_batch", noted):
        assert train(folder, dataset, *SETTINGS) == 0
    assert len(set(found)) == STEPS
    return folder, {step + 1: total for step, total in enumerate(found)}


def poisoned(totals, value):
    """Batches that add up to one of these numbers have `value` added to their loss."""

    def make(*, activation_checkpointing):
        objective = masked_lm(activation_checkpointing=activation_checkpointing)

        def sums(model, batch, dropout_key):
            loss, score = objective.sums(model, batch, dropout_key)
            is_bad = jnp.isin(jnp.sum(batch["tokens_BL"]), jnp.asarray(totals))
            return loss + jnp.where(is_bad, value, 0.0), score

        return checkpoints.dataclasses.replace(objective, sums=sums)

    return mock.patch.object(pretraining, "masked_lm", make)


def state(folder, step=STEPS):
    """The bytes of every array of a checkpoint, and its progress without the time."""
    place = (folder / "checkpoints" / str(step)).absolute()
    with checkpoints.ocp.StandardCheckpointer() as checkpointer:
        leaves = [
            checkpoints.jax.tree.leaves(checkpointer.restore(place / item))
            for item in ("model", "optimizer")
        ]
    record = json.loads(next((place / "progress").iterdir()).read_text())
    for name in ("seconds", "dollars"):
        del record["progress"][name]
    return [np.asarray(x).tobytes() for part in leaves for x in part], record


def events(folder, kind="rolled back"):
    return [row for row in rows(folder) if row.get("event") == kind]


@pytest.mark.one_end
def test_a_batch_without_a_finite_loss_is_left_out(clean, dataset, tmp_path, capsys):
    _, totals = clean
    with poisoned([totals[8]], math.nan):
        assert train(tmp_path / "run", dataset, *SETTINGS) == 0
    assert "step 8: loss not finite; rolling back to step 5" in capsys.readouterr().out
    (event,) = events(tmp_path / "run")
    assert (event["step"], event["at_step"]) == (5, 8)
    steps = [row["step"] for row in rows(tmp_path / "run") if "loss" in row]
    assert steps == list(range(1, STEPS + 1))  # those that count, and each once
    found, record = state(tmp_path / "run")
    assert record["health"]["rollbacks"] == 1
    assert record["position"] != state(clean[0])[1]["position"]  # three batches further on

    # A run that is interrupted before the bad batch, between it and the next checkpoint, and after.
    for moment in (6, 9):
        with poisoned([totals[8]], math.nan), interrupted_at(moment):
            assert train(tmp_path / "again", dataset, *SETTINGS) == 130
    with poisoned([totals[8]], math.nan):
        assert train(tmp_path / "again", dataset, *SETTINGS) == 0
    assert state(tmp_path / "again") == (found, record)
    assert len(events(tmp_path / "again")) == 1


def stopped_after(step):
    """A run that is asked to stop there, and saves."""

    @contextlib.contextmanager
    def stop_requests(say):
        yield lambda completed: completed == step

    return mock.patch.object(loop.supervision, "stop_requests", stop_requests)


@pytest.mark.one_end
def test_where_a_run_was_stopped_makes_no_difference(clean, dataset, tmp_path):
    """Though it has saved there: it goes back to the last checkpoint that was due."""
    _, totals = clean
    with poisoned([totals[8], totals[13]], math.nan):
        assert train(tmp_path / "whole", dataset, *SETTINGS) == 0
        for moments in ((6, 7), (3, 11)):
            folder = tmp_path / str(moments[0])
            for moment in moments:
                with stopped_after(moment):
                    assert train(folder, dataset, *SETTINGS) == 75
                assert (folder / "checkpoints" / str(moment)).exists()
            assert train(folder, dataset, *SETTINGS) == 0
            assert state(folder) == state(tmp_path / "whole")
            kept = sorted(int(path.name) for path in (folder / "checkpoints").iterdir())
            assert kept == [15, STEPS]


def test_one_checkpoint_is_kept_where_one_is_asked_for(dataset, tmp_path):
    """And the one to go back to besides, as long as a stop has saved a newer one."""
    settings = (*SETTINGS, "checkpoint.keep=1")
    with stopped_after(7):
        assert train(tmp_path / "run", dataset, *settings) == 75
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["5", "7"]
    assert train(tmp_path / "run", dataset, *settings) == 0
    assert [path.name for path in checkpoints.iterdir()] == [str(STEPS)]


def test_a_checkpoint_to_go_back_to_that_is_lost(clean, dataset, tmp_path, capsys):
    _, totals = clean
    with poisoned([totals[8]], math.nan):
        with stopped_after(7):
            assert train(tmp_path / "run", dataset, *SETTINGS) == 75
        flip(next((tmp_path / "run" / "checkpoints" / "5" / "progress").iterdir()))
        assert train(tmp_path / "run", dataset, *SETTINGS) == 0
    assert "The checkpoint of step 5 is lost" in capsys.readouterr().out
    assert [(row["step"], row["at_step"]) for row in events(tmp_path / "run")] == [(7, 8)]


def test_what_is_left_out_is_from_the_checkpoint_to_the_bad_batch(clean, dataset, tmp_path):
    """Steps 6, 7, … are then those of the batches behind it."""
    _, totals = clean
    place, found = loop.sharding.place_batch, []

    def noted(mesh, arrays):
        found.append(int(arrays["tokens_BL"].sum()))
        return place(mesh, arrays)

    with poisoned([totals[8]], math.nan), mock.patch.object(loop.sharding, "place_batch", noted):
        assert train(tmp_path / "run", dataset, *SETTINGS, "train.duration=9ba") == 0
    # Step 9 was on its way when the loss of step 8 was read.
    assert found[:9] == [totals[step] for step in range(1, 10)]
    assert found[9:13] == [totals[step] for step in range(9, 13)]


def test_before_the_first_checkpoint_a_run_begins_again_behind_the_batch(clean, dataset, tmp_path):
    _, totals = clean
    with poisoned([totals[2]], math.nan):
        assert train(tmp_path / "run", dataset, *SETTINGS, "train.duration=3ba") == 0
    (event,) = events(tmp_path / "run")
    assert (event["step"], event["at_step"]) == (0, 2)


@pytest.mark.one_end
def test_so_many_rollbacks_and_then_it_stops(clean, dataset, tmp_path, capsys):
    _, totals = clean
    bad = [totals[step] for step in (7, 9, 11)]
    settings = (*SETTINGS, "recovery.max_rollbacks=2")
    with poisoned(bad, math.nan):
        assert train(tmp_path / "run", dataset, *settings) == 2
        error = capsys.readouterr().err
        # After two: the checkpoint of step 5, and behind batch 9 the second one is batch 11.
        assert "step 7: loss not finite; the run stops" in error
        assert error.count("\n") == 1
        assert [event["at_step"] for event in events(tmp_path / "run")] == [7, 7]
        assert train(tmp_path / "run", dataset, *settings) == 2  # decides alike
        assert train(tmp_path / "run", dataset, *SETTINGS, "recovery.max_rollbacks=3") == 0
    assert state(tmp_path / "run")[1]["health"]["rollbacks"] == 3


@pytest.mark.one_end
def test_a_loss_far_above_the_others_is_a_spike(clean, dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mosaicbert_jax.training.recovery._FIRST", 5)
    _, totals = clean
    with poisoned([totals[13]], 1e6):
        assert train(tmp_path / "run", dataset, *SETTINGS, "recovery.spike=20") == 0
        assert "20 standard deviations" in capsys.readouterr().out
        assert [event["at_step"] for event in events(tmp_path / "run")] == [13]
        assert train(tmp_path / "off", dataset, *SETTINGS, "recovery.spike=0") == 0
    assert not events(tmp_path / "off")


def test_the_spread_that_a_loss_is_judged_by():
    recovery = pretraining_config(BertConfig()).recovery
    rng, health = np.random.default_rng(0), Health()
    for loss in 5 + 0.1 * rng.standard_normal(1000):
        assert health.complaint({"loss": loss, "grad_norm": 1.0}, recovery) is None
        health = health.after(loss)
    assert health.mean == pytest.approx(5, abs=0.03)
    assert math.sqrt(health.variance) == pytest.approx(0.1, rel=0.2)
    bound = health.mean + recovery.spike * math.sqrt(health.variance)
    assert health.complaint({"loss": bound - 1e-6, "grad_norm": 1.0}, recovery) is None
    assert "recovery.spike" in health.complaint({"loss": bound + 1e-6, "grad_norm": 1.0}, recovery)
    assert Health(losses=99, mean=5).complaint({"loss": 9, "grad_norm": 1.0}, recovery) is None
    assert (
        Health().complaint({"loss": 1, "grad_norm": math.inf}, recovery) == "grad_norm not finite"
    )
    assert Health.from_dict(json.loads(json.dumps(health.to_dict()))) == health


def test_a_watchdog_that_never_waits_is_refused(dataset, tmp_path, capsys):
    assert train(tmp_path / "run", dataset, "recovery.hang_seconds=0.0") == 2
    assert "recovery.hang_seconds=0.0" in capsys.readouterr().err


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("harm", [shorten, flip, lambda path: path.unlink()])
@pytest.mark.parametrize("pattern", ["model/**/d/*", "optimizer/manifest.ocdbt", "progress/*"])
def test_a_damaged_checkpoint_is_known(clean, tmp_path, harm, pattern):
    folder = shutil.copytree(clean[0] / "checkpoints" / str(STEPS), tmp_path / "18")
    assert checkpoint_files.damage(folder) is None
    path = max(folder.glob(pattern), key=lambda path: path.stat().st_size)
    harm(path)
    assert checkpoint_files.damage(folder).startswith(str(path.relative_to(folder)))
    assert checkpoint_files.damage(folder, "config") is None


def test_a_run_goes_on_from_the_newest_whole_checkpoint(clean, dataset, tmp_path, capsys):
    """And ends with the same bits; the damaged one is kept aside."""
    folder = shutil.copytree(clean[0], tmp_path / "run")
    expected = state(folder)
    shutil.rmtree(folder / "checkpoints" / "15")  # one is left beside the last: of step 10
    shutil.copytree(folder / "checkpoints" / "18", folder / "checkpoints" / "15")
    assert train(tmp_path / "older", dataset, *SETTINGS, "checkpoint.keep=9") == 0
    shutil.rmtree(folder / "checkpoints" / "15")
    shutil.copytree(tmp_path / "older" / "checkpoints" / "15", folder / "checkpoints" / "15")
    flip(max((folder / "checkpoints" / "18" / "model").glob("**/d/*")))
    capsys.readouterr()

    assert command(["fill-mask", str(folder), "the [MASK]"]) == 2
    error = capsys.readouterr().err
    assert "18 is damaged: model/" in error
    assert "[15]" in error

    assert train(folder, dataset, *SETTINGS) == 0
    said = capsys.readouterr().out
    assert "The checkpoint of step 18 is damaged (model/" in said
    assert "Resuming from step 15" in said
    assert state(folder) == expected
    assert [path.name.split("-")[0] for path in (folder / "damaged").iterdir()] == ["18"]

    for step in ("15", "18"):
        flip(next((folder / "checkpoints" / step / "progress").iterdir()))
    assert train(folder, dataset, *SETTINGS) == 2
    error = capsys.readouterr().err
    assert "no checkpoint in" in error
    assert "of step 18, progress/" in error
    assert error.count("\n") == 1


def test_training_goes_on_where_a_checkpoint_cannot_be_written(clean, dataset, tmp_path, capsys):
    real, calls = checkpoint_files.seal, []

    def fail_once(folder):
        calls.append(folder)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(folder)

    with mock.patch.object(checkpoint_files, "seal", fail_once):
        assert train(tmp_path / "run", dataset, *SETTINGS) == 0
    said = capsys.readouterr().out
    assert "the checkpoint of step 10 is not written" in said
    assert "No space left on device" in said
    assert "of step 5" in said
    assert state(tmp_path / "run") == state(clean[0])
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "15",
        "18",
    ]


def test_a_run_whose_last_checkpoint_cannot_be_written_fails(dataset, tmp_path, capsys):
    error = OSError(28, "No space left on device")
    with mock.patch.object(checkpoint_files, "seal", side_effect=error):
        assert train(tmp_path / "run", dataset, *SETTINGS, "train.duration=2ba") == 2
    assert "the checkpoint of step 2 is not written" in capsys.readouterr().err
    assert not events(tmp_path / "run", "finished")


STUCK = """
import sys, time
from mosaicbert_jax.commands import train as command
from mosaicbert_jax.pretraining import evaluation
evaluation.evaluate.__globals__["place_batch"] = lambda *_: time.sleep(600)
sys.argv = sys.argv[1:]
command.main()
"""


@pytest.mark.one_end
def test_a_hang_is_told_and_ended_if_asked_for(dataset, tmp_path):
    line = run_train(
        tmp_path / "run", dataset, "recovery.hang_seconds=20", "recovery.exit_on_hang=True",
        "train.duration=2ba",
    )  # fmt: skip
    done = run_process([line[0], "-c", STUCK, *line[1:]], timeout=240)
    assert done.returncode == 75, done.stderr
    assert "hang.txt" in done.stdout
    told = (tmp_path / "run" / "hang.txt").read_text()
    assert "evaluate" in told
    assert "(most recent call first)" in told
