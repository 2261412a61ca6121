"""The time and the money that a run has taken, over its restarts."""

import json
import types

import jax
import pytest

from configs import tiny
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.pretraining import configuration
from mosaicbert_jax.training import durations as clocks
from mosaicbert_jax.training.durations import Duration, Progress
from tests.conftest import run_process, run_train


@pytest.fixture
def now(monkeypatch):
    """The time, set by hand."""
    found = types.SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(clocks.time, "monotonic", lambda: found.seconds)
    return found


def test_compiling_costs_money_and_takes_no_time_of_the_run(now):
    clock = clocks.Clock(Progress(), (), 2.5)
    now.seconds += 3600
    clock.exclude(1800)
    assert clock.read() == (1800, 2.5 * jax.device_count())


def test_a_restart_counts_on_at_its_own_price(now):
    before = Progress(step=7, seconds=100.0, dollars=8.0)
    clock = clocks.Clock(before, (Duration(20.0, "usd"),), 1.0)
    now.seconds += 1800
    assert clock.read() == (1900, 8.0 + 0.5 * jax.device_count())


def test_no_price_no_dollars(now):
    clock = clocks.Clock(Progress(), ())
    now.seconds += 60
    assert clock.read() == (60, 0.0)


@pytest.mark.one_end
def test_a_run_ends_when_its_money_is_spent_and_tells(dataset, tmp_path):
    price = 3600.0  # a dollar a second
    settings = ("train.duration=3usd", f"train.price_per_gpu_hour={price}", "log.every=1")
    done = run_process(run_train(tmp_path / "run", dataset, *settings, "eval.every=1000ba"))
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "loss" in row]
    spent = [row["dollars"] for row in rows]
    assert spent == sorted(spent)
    # A slow machine may compile for three dollars, and end after its first step.
    assert spent[-1] >= 3
    assert all(dollars < 3 for dollars in spent[:-1])


def test_dollars_need_a_price():
    config = tiny.get_config()
    config.data.path = "somewhere"
    config.train.duration = "20usd"
    with pytest.raises(UserError, match=r"train\.duration=20usd needs train\.price_per_gpu_hour"):
        configuration.check(config)
    config.train.price_per_gpu_hour = 2.5
    configuration.check(config)
    config.train.price_per_gpu_hour = -1.0
    with pytest.raises(UserError, match=r"price_per_gpu_hour=-1\.0 must be above 0"):
        configuration.check(config)
