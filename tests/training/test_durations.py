"""Durations, and the learning rates of the recipe."""

import pytest

from mosaicbert_jax import UserError
from mosaicbert_jax.training.durations import Duration, Progress


@pytest.mark.parametrize(
    ("text", "progress", "count"),
    [
        ("70000ba", Progress(step=35_000), 0.5),
        ("286720000sp", Progress(sequences=71_680_000), 0.25),
        ("30e9tok", Progress(tokens=3_000_000_000), 0.1),
        ("3ep", Progress(sequences=150), 0.5),
        ("2m", Progress(seconds=30), 0.25),
        ("1.5h", Progress(seconds=5400), 1.0),
        ("90s", Progress(seconds=45), 0.5),
        ("20usd", Progress(dollars=5), 0.25),
    ],
)
def test_share(text, progress, count):
    duration = Duration.parse(text, key="train.duration")
    assert duration.count(progress, sequences_per_epoch=100) == pytest.approx(count)


@pytest.mark.parametrize("text", ["", "7", "ba", "0ba", "-3ba", "3 weeks", "1..5h", "1e", "3BA"])
def test_not_a_duration(text):
    with pytest.raises(UserError, match=r"eval\.every=.*is not a duration.*ba \(steps\)"):
        Duration.parse(text, key="eval.every")


def test_passed_multiples():
    every = Duration.parse("10ba", key="eval.every")
    due = [n for n in range(1, 31) if every.passed(Progress(step=n - 1), Progress(step=n), 1)]
    assert due == [10, 20, 30]
