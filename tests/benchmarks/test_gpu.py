"""benchmarks.gpu: rehearsed as a whole on this CPU, and what can be known without a GPU."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.attention import needed_pairs
from benchmarks.gpu.counters import ncu_rows
from benchmarks.gpu.inputs import batch_of, config_of
from benchmarks.gpu.kernel_times import Event, by_kernel
from mosaicbert_jax.planning.gpu_time import Range
from tests.conftest import ROOT

HLO = """HloModule jit_step

ENTRY %main (x: bf16[64,32], w: bf16[32,16]) -> bf16[64,16] {
  %x = bf16[64,32]{1,0} parameter(0)
  %w = bf16[32,16]{1,0} parameter(1)
  %negate.1 = bf16[64,32]{1,0} negate(%x)
  %kernel.1 = bf16[64,32]{1,0} custom-call(%negate.1), \
custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(f)/geglu_forward/pallas_call"}
  %product = (bf16[64,16]{1,0}, s8[4194304]{0}) custom-call(%kernel.1, %w), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  ROOT %y = bf16[64,16]{1,0} get-tuple-element(%product), index=0
}
"""


def gpu(*words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "XLA_FLAGS": ""}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.one_end
def test_the_rehearsal_runs_every_part(tmp_path):
    done = gpu("--rehearse", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout
    text = {part: (tmp_path / f"{part}.md").read_text() for part in command.PARTS}
    assert not any("FAILED" in one for one in text.values())
    assert text["numerics"].count("PASS") == 15
    assert text["determinism"].count("PASS") == 2
    assert "| mosaicbert_base 2x64 packed, autotuned |" in text["step"]
    assert "share of time waiting for data" in text["train"]
    assert text["attention"].count("| ours, ") == 3
    assert "the kernels ran | PASS" in text["counters"]
    torch = importlib.util.find_spec("torch")
    assert ("ModernBert | full | sdpa" if torch else "not to be had") in text["peers"]
    assert done.stdout.splitlines()[-len(text) :] == [
        line for line in done.stdout.splitlines() if ": ok, " in line
    ]


def test_the_limits_are_8_minutes():
    assert sum(command.PARTS.values()) <= 8 * 60


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--output", "somewhere", "stepp"), "there is no part stepp, only machine, numerics"),
        (("step",), "--output FOLDER is needed: benchmarks/gpu/CARD"),
    ],
)
def test_mistakes_are_said(words, message):
    done = gpu(*words)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


def test_a_part_that_says_failed_or_is_cut_off_fails():
    assert command.Outcome("step", 3.0, 0, ()).ok
    for status, failures in ((0, ("| x | FAILED |",)), (1, ()), (None, ())):
        outcome = command.Outcome("step", 3.0, status, failures)
        assert not outcome.ok
        assert str(outcome).startswith("step: FAILED: ")
    assert "ended at its limit" in str(outcome)


def test_a_part_is_ended_at_its_limit(monkeypatch, tmp_path):
    monkeypatch.setitem(command.PARTS, "machine", 0.1)
    outcome = command.run("machine", tmp_path, dict(os.environ), rehearse=False)
    assert outcome.status is None
    assert (tmp_path / "machine.md").read_text().startswith("# machine\n")


def test_kernels_of_a_profile_have_the_bytes_and_flops_of_the_program():
    events = [
        Event("cublas_kernel", "product", 2e-3),
        Event("geglu_forward", "kernel.1", 1e-3),
        Event("geglu_forward", "kernel.1", 1e-3),  # of a second step
        Event("loop_negate", "negate.1", 0.5e-3),
        Event("memset", "", 0.1e-3),
    ]
    product, kernel, fusion, other = by_kernel(events, HLO, lambda work: Range(1.0, 2.0))
    assert product.name == "product bf16[64,32] · bf16[32,16] -> bf16[64,16]"
    assert (product.runs, product.seconds, product.flops) == (1, 2e-3, 2 * 64 * 32 * 16)
    assert (kernel.name, kernel.runs, kernel.seconds) == ("geglu_forward", 2, 2e-3)
    assert kernel.bytes == 2 * 2 * 64 * 32
    assert fusion.name == "XLA: negate"
    assert (other.name, other.bytes, other.flops) == ("memset", 0, 0)
    # Of one step, however many were traced.
    assert [one.predicted for one in (product, kernel, other)] == [Range(1.0, 2.0)] * 2 + [Range()]


def test_pairs_are_counted_within_segments():
    assert needed_pairs(np.array([[1, 1, 2, 0], [1, 1, 1, 1]])) == 4 + 1 + 16


def test_a_batch_is_masked_as_text_is():
    config = config_of("mosaicbert_base", rehearse=True)
    batch, tokens = batch_of(config, 4, 128, "packed")
    arrays = {name: np.asarray(array) for name, array in batch.items()}
    assert tokens == (arrays["segment_ids_BL"] > 0).sum()
    assert ((arrays["tokens_BL"] > 0) == (arrays["segment_ids_BL"] > 0)).all()
    assert 0.2 < arrays["weights_BP"].sum() / tokens < 0.4
    assert 0.18 < (arrays["tokens_BL"] == 4).sum() / tokens < 0.3


def test_counters_are_read_from_ncu():
    said = "\n".join(
        [
            "==PROF== Connected",
            '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"',
            '"0","geglu_backward","dram__bytes.sum","Mbyte","12"',
            '"0","geglu_backward","gpu__time_duration.sum","us","3"',
            '"1","other","dram__bytes.sum","Mbyte","4"',
        ]
    )
    assert ncu_rows(said) == [
        "geglu_backward: dram__bytes.sum 12, gpu__time_duration.sum 3",
        "other: dram__bytes.sum 4",
    ]
