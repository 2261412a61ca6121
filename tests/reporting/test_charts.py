"""The curves' points."""

import itertools

import numpy as np
import pytest

from mosaicbert_jax.reporting.charts import SPAN, charts_of, curves_of, moving_average
from mosaicbert_jax.reporting.history import History
from tests.reporting.cases import row, write_run


def test_the_moving_average():
    y_R = np.random.default_rng(0).normal(size=1000)
    expected, mean = [], 0.0
    for count, y in enumerate(y_R, 1):
        weight = 2 / (max(SPAN * count, 1) + 1)
        mean = weight * y + (1 - weight) * mean
        expected.append(mean)
    np.testing.assert_allclose(moving_average(y_R), expected)
    assert moving_average(y_R)[-500:].std() < 0.3 * y_R[-500:].std()


def test_gaps_stay_gaps_and_do_not_count():
    np.testing.assert_array_equal(moving_average(np.array([np.nan, 2.0, np.nan, 2.0]))[::2], np.nan)
    y_R = np.arange(100.0)
    gaps_R = np.insert(y_R, 50, [np.nan] * 3)
    np.testing.assert_array_equal(moving_average(gaps_R)[53:], moving_average(y_R)[50:])


@pytest.mark.parametrize("rows", [1, 10, 200, 201, 5000])
def test_every_row_is_in_a_point(tmp_path, rows):
    run = History.read(write_run(tmp_path / "run", map(row, range(1, rows + 1))), "run")
    chart = charts_of([run])[0]
    (curve,) = curves_of(chart, [run])
    loss_R = run.column("loss")
    assert len(curve.last_K) == rows if rows <= 200 else 100 < len(curve.last_K) <= 200
    starts = np.append(0, curve.last_K + 1)
    assert starts[-1] == rows
    for k, (start, end) in enumerate(itertools.pairwise(starts)):
        assert curve.low_K[k] == loss_R[start:end].min()
        assert curve.high_K[k] == loss_R[start:end].max()
    np.testing.assert_array_equal(curve.y_K, moving_average(loss_R)[curve.last_K])
