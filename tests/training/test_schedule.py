"""The learning rate over a run."""

import math

import pytest

from mosaicbert_jax import BertConfig
from mosaicbert_jax.pretraining.configuration import pretraining
from mosaicbert_jax.training.durations import Duration, Progress
from mosaicbert_jax.training.schedule import Schedule


def schedule(**settings):
    config = pretraining(BertConfig())
    config.optimizer.update(settings)
    return Schedule.of(config.optimizer)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [(0, 0.0), (1, 1.19e-7), (2_100, 2.5e-4), (35_000, 2.706e-4), (70_000, 1e-5)],
)
def test_the_recipes_learning_rates(batch, expected):
    """The published schedule's values, one sequence a row: 70,000 batches of 4,096."""
    duration = Duration.parse("286720000sp", key="train.duration")
    share = duration.count(Progress(sequences=batch * 4096), sequences_per_epoch=1)
    assert schedule().rate(share) == pytest.approx(expected, rel=1e-3)


def test_no_warmup_starts_at_the_peak():
    assert schedule(learning_rate=1.0, warmup=0.0).rate(0.0) == 1.0


AT = {"learning_rate": 2.0, "warmup": 0.1, "final_fraction": 0.1}


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"schedule": "linear"}, {0.1: 2.0, 0.55: 1.1, 1.0: 0.2, 1.3: 0.2}),
        ({"schedule": "cosine"}, {0.1: 2.0, 0.55: 1.1, 0.325: 1.1 + 0.9 * math.cos(math.pi / 4)}),
        ({"schedule": "constant"}, {0.1: 2.0, 0.5: 2.0, 1.0: 2.0}),
        ({"schedule": "wsd", "decay": 0.2, "decay_form": "linear"}, {0.8: 2.0, 0.9: 1.1, 1.0: 0.2}),
        ({"schedule": "wsd", "decay": 0.2}, {0.1: 2.0, 0.8: 2.0, 0.85: 1.1, 1.0: 0.2}),
        ({"schedule": "decay", "decay_form": "1-sqrt"}, {0.0: 2.0, 0.25: 1.1, 1.0: 0.2}),
        ({"schedule": "decay", "decay_form": "cosine"}, {0.0: 2.0, 0.5: 1.1, 1.0: 0.2}),
    ],
)
def test_each_schedule(settings, rates):
    made = schedule(**AT, **settings)
    for share, rate in rates.items():
        assert made.rate(share) == pytest.approx(rate), share
    if settings["schedule"] != "decay":
        assert made.rate(0.05) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "stable"),
    [
        ("linear", [0.1]),
        ("wsd", [0.1, 0.5, 0.9]),
        ("constant", [0.1, 0.5, 0.9, 0.95, 1.0]),
        ("decay", [0.0]),
    ],
)
def test_where_a_decay_may_start(name, stable):
    made = schedule(**AT, schedule=name)
    found = [share for share in (0.0, 0.05, 0.1, 0.5, 0.9, 0.95, 1.0) if made.is_stable(share)]
    assert found == stable


def test_a_decay_continues_the_stable_phase_of_wsd():
    """The last quarter of a run, and a run that is that quarter."""
    whole = schedule(schedule="wsd", decay=0.25, warmup=0.125)
    end = schedule(schedule="decay", warmup=0.125)
    for step in range(16):
        assert end.rate(step / 16) == whole.rate(0.75 + step / 64)
