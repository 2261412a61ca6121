"""Progress that fits the terminal, and of work that knows nothing of its progress."""

import time

import pytest

from mosaicbert_jax import progress
from mosaicbert_jax.training.metrics import ProgressBar


def test_what_does_not_fit_is_dropped_from_the_end():
    parts = ["step 1,000", "loss 2.345", "12,345 tokens/s"]
    assert progress.fitting(parts, 80) == "step 1,000  loss 2.345  12,345 tokens/s"
    assert progress.fitting(parts, 30) == "step 1,000  loss 2.345"
    assert progress.fitting(parts, 5) == ""


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_bar_fits_the_terminal(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bar = ProgressBar(0.0, show=True)
    row = {
        "step": 12_345, "loss": 2.3456, "masked_accuracy": 0.271, "tokens_per_second": 14_800.0,
        "dollars": 12.5,
    }  # fmt: skip
    for share in (0.25, 1.5):
        bar.update(share, row, "masked_accuracy")
    bar.close()
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").split("\n") if line]
    assert lines
    assert max(map(len, lines)) <= max(width, 30)
    assert ("step 12,345" in lines[-1]) == (width >= 40)
    assert ("masked accuracy 0.271" in lines[-1]) == (width == 200)


def test_work_in_a_thread_returns_and_raises_and_ticks(monkeypatch, capsys):
    monkeypatch.setattr(progress, "AFTER_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    assert progress.while_ticking("counting", lambda: time.sleep(0.7) or 3) == 3
    assert "counting: 00:0" in capsys.readouterr().out
    with pytest.raises(ZeroDivisionError):
        progress.while_ticking("dividing", lambda: 1 / 0)
