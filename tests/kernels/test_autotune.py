"""The autotuner of attention's launch parameters, and its timer."""

import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from pallas_kernels.alibi_attention import autotune
from pallas_kernels.alibi_attention.launch import AttentionLaunch, Launch
from pallas_kernels.timing import seconds_per_call

SMALL, LARGE = Launch(32, 32, 4, 1), Launch(64, 32, 4, 1)


def test_it_measures_both_directions_and_keeps_the_fastest(monkeypatch):
    """By the interpreter, with a clock that says which is faster."""
    took = iter([2.0, 1.0, 1.0, 2.0])
    measured = []

    def clock(function, *operands, **options):
        measured.append(jax.tree.map(np.shape, function(*operands)))
        return next(took)

    monkeypatch.setattr(autotune, "seconds_per_call", clock)
    problem = autotune.Problem(1, 40, heads=1, head_size=32, dtype="float32", longest=20)
    lines = []
    found = autotune.autotune(
        problem, lambda backward: [SMALL, LARGE], backend="interpret", say=lines.append
    )
    assert found == AttentionLaunch(forward=LARGE, backward=SMALL)
    assert measured == [(1, 40, 1, 32)] * 2 + [((1, 40, 3, 1, 32),)] * 2
    assert lines[0].startswith("forward 1/2, ")
    assert "32x32, 4 warps, 1 stages: 2000.000 ms" in lines[0]


def test_what_a_card_can_not_run_is_passed_over():
    def measure(launch):
        if launch == SMALL:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too much\nand more")
        return 1.0

    lines = []
    assert autotune.fastest("forward", [SMALL, LARGE], measure, lines.append) == LARGE
    assert "can't run: RESOURCE_EXHAUSTED: too much" in lines[0]
    with pytest.raises(RuntimeError, match="no launch of the forward kernel runs"):
        autotune.fastest("forward", [SMALL], measure, lines.append)


def test_documents_fill_the_rows():
    problem = autotune.Problem(3, 50, heads=2, head_size=32, dtype="bfloat16", longest=8)
    qkv_BL3HD, ids_BL, d_out_BLHD = problem.operands()
    assert (qkv_BL3HD.shape, d_out_BLHD.shape) == ((3, 50, 3, 2, 32), (3, 50, 2, 32))
    for ids_L in np.asarray(ids_BL):
        assert ids_L[0] == 1
        assert set(np.diff(ids_L)) == {0, 1}
        assert np.bincount(ids_L).max() <= 8


def test_without_a_gpu_it_says_so_in_a_line():
    said = subprocess.run(
        [sys.executable, "-m", "pallas_kernels.alibi_attention.autotune"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr == ("error: the device is a cpu, and triton's kernels are for NVIDIA GPUs\n")


def test_the_timer_counts_a_call():
    def function(x):
        time.sleep(0.005)
        return x

    # All 40 together take 0.2 s or more.
    assert 0.005 <= seconds_per_call(function, np.ones(1), calls=40, repeats=3) < 0.1
