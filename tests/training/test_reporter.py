"""The rows of metrics.jsonl: when they are written and what is in them."""

import types

import jax.numpy as jnp
import pytest

from mosaicbert_jax import BertConfig
from mosaicbert_jax.data.pipeline import Position
from mosaicbert_jax.pretraining.configuration import pretraining
from mosaicbert_jax.training import metrics as reporters
from mosaicbert_jax.training.checkpoints import Snapshot
from mosaicbert_jax.training.durations import Progress
from mosaicbert_jax.training.flops import model_flops_per_token
from mosaicbert_jax.training.recovery import Diverged, Health
from mosaicbert_jax.training.step import MASKED_LM

PEAK = 1e12
START = Snapshot(None, Progress(), Position(), Health())


class Recorder:
    """Stands for the metrics writer and for the progress bar."""

    def __init__(self):
        self.rows = []

    def write(self, row):
        self.rows.append(row)

    def update(self, share, row, score):
        pass


@pytest.fixture
def recorder(monkeypatch):
    """A reporter of a run of 4 rows x 512 tokens, on a clock of one second a reading."""
    seconds = iter(range(1000))
    monkeypatch.setattr(reporters.time, "monotonic", lambda: float(next(seconds)))
    config = pretraining(BertConfig())
    with config.unlocked():
        config.log.every = 2
    run = types.SimpleNamespace(
        config=config,
        objective=MASKED_LM,
        flops_per_token=model_flops_per_token(
            BertConfig.mosaicbert_base(), sequence_length=128, masking_rate=0.3
        ),
        parameters=137_400_384,
        share=lambda progress: 0.5,
    )
    recorder = Recorder()
    recorder.reporter = reporters.Reporter(run, recorder, recorder, START, PEAK)
    return recorder


def dispatch(recorder, step, loss=5.0):
    batch = types.SimpleNamespace(
        tokens=2000, sequences=20, slots=2048, overflowed=3, position=Position(0, 0, step)
    )
    metrics = {name: jnp.float32(loss) for name in ("loss", "masked_accuracy", "grad_norm")}
    progress = Progress(step, sequences=20 * step, tokens=2000 * step, seconds=float(step))
    recorder.reporter.dispatched(progress, batch, 1e-4, metrics)


def test_a_step_is_reported_when_the_next_is_dispatched(recorder):
    dispatch(recorder, 1)
    assert not recorder.rows
    dispatch(recorder, 2)
    assert [r["step"] for r in recorder.rows] == [1]
    dispatch(recorder, 3)
    assert [r["step"] for r in recorder.rows] == [1, 2]
    recorder.reporter.flush()
    assert [r["step"] for r in recorder.rows] == [1, 2]  # 3 is not a multiple of log.every
    dispatch(recorder, 4)
    recorder.reporter.flush()
    assert [r["step"] for r in recorder.rows] == [1, 2, 4]


def test_speed_counts_real_tokens_and_mfu_is_a_share_of_the_peak(recorder):
    for step in range(1, 5):
        dispatch(recorder, step)
    recorder.reporter.flush()
    row = recorder.rows[-1]
    assert row["tokens_per_second"] == 4000  # steps 3 and 4, between two readings of the clock
    assert row["mfu"] == pytest.approx(737e6 * 4000 / PEAK, rel=1e-3)
    assert row["mfu_6n"] == pytest.approx(6 * 137_400_384 * 2 * 2048 / PEAK)
    assert row["packing_efficiency"] == 2000 / 2048
    assert row["overflowed_predictions"] == 6
    assert row["samples"] == 80


def test_an_evaluation_within_a_row_is_left_out_of_its_speed(recorder):
    dispatch(recorder, 1)
    dispatch(recorder, 2)
    recorder.reporter.exclude(0.5)  # of the second between two readings of the clock
    dispatch(recorder, 3)
    assert recorder.rows[-1]["step"] == 2
    assert recorder.rows[-1]["tokens_per_second"] == 2000 / 0.5


def test_the_share_of_a_row_that_was_waited_for_data(recorder, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(reporters.time, "monotonic", lambda: clock[0])
    recorder.reporter = reporters.Reporter(recorder.reporter.run, recorder, recorder, START, PEAK)

    for step, seconds in enumerate((1.0, 0.5, 0.25, 2.0, 0.0), start=1):
        with recorder.reporter.waiting():
            clock[0] += seconds
        clock[0] += 1.0  # the step itself
        dispatch(recorder, step)
    recorder.reporter.flush()
    # The row of a step is written when the next has been dispatched, or at its flush.
    assert [(r["step"], r["data_wait_fraction"]) for r in recorder.rows] == [
        (1, 1.5 / 3.5),
        (2, 0.25 / 1.25),
        (4, 2.0 / 4.0),
    ]


def test_not_finite_ends_at_its_step(recorder):
    dispatch(recorder, 1)
    dispatch(recorder, 3, loss=float("nan"))
    with pytest.raises(Diverged, match="step 3: loss and grad_norm not finite") as raised:
        dispatch(recorder, 4)
    assert recorder.rows[-1]["step"] == 3
    assert raised.value.position == Position(0, 0, 3)  # where the data continues after it
    assert raised.value.progress.step == 3
    assert recorder.reporter.health.losses == 1
