"""Reading compiled programs, and what is said where nothing can be compiled; no CUDA needed."""

import sys

import pytest

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.planning import compile_only
from mosaicbert_jax.planning.compile_only import Kernel, Program
from mosaicbert_jax.planning.gpus import GPUS

PTX = """
.version 8.0
.visible .entry attend(
\t.param .u64 attend_param_0
)
{
\tmov.u32 \t%r1, 0;
$L__BB0_1:
\tadd.s32 \t%r2, %r2, 1;
$L__BB0_2:                              // %inner
\tmma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
\t\t{ %r1, %r2 },
\t\t{ %r3 };
\tex2.approx.f32 \t%f1, %f1;
\tex2.approx.ftz.f32 \t%f1, %f1;
\tadd.s32 \t%r1, %r1, 1;
\t@%p1 bra \t$L__BB0_2;
\t@%p2 bra \t$L__BB0_1;
\t@%p3 bra \t$L__BB0_3;
\tst.global.b32 \t[%rd1], %r1;
\t// begin inline asm
{
\twait: @!%p4 bra wait;
}
\t// end inline asm
$L__BB0_3:
\tret;
}

.visible .entry add(
\t.param .u64 add_param_0
)
{
\t@%p1 atom.global.cas.b32 \t%r1, [%rd1], %r2, %r3;
\tret;
}
.visible .entry last(
\t.param .u64 last_param_0
)
{
\tredux.sync.add.s32 \t%r1, %r2, %r3;
\tret;
}
"""
PTXAS = """ptxas info    : (C7515) Potential Performance Loss: \
wgmma.mma_async instructions are serialized in the function 'attend'
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'attend' for 'sm_80'
ptxas info    : Function properties for attend
    16 bytes stack frame, 40 bytes spill stores, 60 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 416 bytes cmem[0]
ptxas info    : Compiling entry function 'add' for 'sm_80'
ptxas info    : Used 8 registers, used 0 barriers
"""
HLO = """HloModule jit_f

%fused (p: bf16[8,4]) -> bf16[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %copy.1 = bf16[8,4]{1,0} copy(%p)
}

ENTRY %main (x: bf16[8,4]) -> bf16[2,4] {
  %x = bf16[8,4]{1,0} parameter(0), sharding={replicated}
  %call.1 = (bf16[8,4]{1,0}, s8[64]{0}) custom-call(%x, /*index=1*/%x), custom_call_target="mm"
  %get-tuple-element.1 = bf16[8,4]{1,0} get-tuple-element(%call.1), index=0
  %all-gather-start = (bf16[8,4]{1,0}, bf16[64,4]{1,0}) all-gather-start(%get-tuple-element.1)
  %all-gather-done = bf16[64,4]{1,0} all-gather-done(%all-gather-start)
  ROOT %fusion = bf16[2,4]{1,0} fusion(%all-gather-done), kind=kLoop, calls=%fused
}
"""


def kernel(**changes) -> Kernel:
    figures = {"registers": 64, "spilled_bytes": 0, "shared_memory": 0, "threads": 128}
    figures |= {
        "mma": 0,
        "wgmma": 0,
        "tcgen05": 0,
        "serialized": False,
        "exact_exponentials": 0,
        "instructions": 1,
        "looped_instructions": 1,
    }
    return Kernel(name="kernel", **(figures | changes))


def test_ptx_and_what_ptxas_says(tmp_path, monkeypatch):
    (tmp_path / "module.ptx").write_text(PTX)
    (tmp_path / "module.thunk_sequence.txt").write_text(
        "001: kCustomKernel attend grid: [4, 1, 1] threads: [128, 1, 1] shared_memory: 512 bytes\n"
    )
    ptxas = tmp_path / "ptxas"
    ptxas.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{PTXAS}END\n")
    ptxas.chmod(0o755)
    monkeypatch.setattr(compile_only, "_ptxas", lambda: ptxas)
    assert compile_only.kernels_found(tmp_path, GPUS["h100"], "other") == ()
    assert compile_only.atomics_found(tmp_path) == ("add",)
    [found] = compile_only.kernels_found(tmp_path, GPUS["h100"], "attend")
    assert found == Kernel(
        name="attend",
        registers=255,
        spilled_bytes=100,
        shared_memory=512,
        threads=128,
        mma=1,
        wgmma=0,
        tcgen05=0,
        exact_exponentials=1,
        serialized=True,
        instructions=12,
        looped_instructions=5,  # the inner loop's alone
    )


def test_entry_computation_and_collectives():
    program = Program(HLO, 0, 0)
    assert program.collectives() == ["all-gather-start"]
    entry = program.entry()
    assert "copy.1" not in entry  # it is within a fusion
    assert entry["call.1"].opcode == "mm"
    assert entry["call.1"].operands == ("x", "x")
    assert entry["call.1"].largest == 64
    assert entry["fusion"].operands == ("all-gather-done",)
    assert entry["fusion"].largest == 8


@pytest.mark.parametrize(
    ("figures", "warps"),
    [
        ({}, 32),  # 65,536 / 64 registers
        ({"registers": 255}, 8),
        ({"registers": 162}, 12),  # 168 are given out
        ({"registers": 16}, 64),
        ({"registers": 16, "threads": 32}, 32),  # 32 blocks
        ({"shared_memory": 58_112}, 8),  # A100: 164 KiB
    ],
)
def test_resident_warps(figures, warps):
    assert kernel(**figures).resident_warps(GPUS["a100-80gb"]) == warps


def test_without_the_environment_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("COMPILE_PYTHON", "/nowhere/python")
    with pytest.raises(UserError, match=r"needs /nowhere/python: run `make \.venv-compile"):
        compile_only.run_there("this")
    monkeypatch.setattr(compile_only, "_NEEDED", ("jax", "no-such-plugin"))
    monkeypatch.setenv("COMPILE_PYTHON", sys.executable)
    with pytest.raises(UserError, match="needs no-such-plugin: run"):
        compile_only.run_there("this")


def test_a_module_there_sees_no_cache_and_none_of_our_flags(monkeypatch, tmp_path):
    (tmp_path / "say.py").write_text(
        "import os, jax; from jax import config\n"
        "print(config.jax_enable_compilation_cache, os.environ.get('XLA_FLAGS'))"
    )
    monkeypatch.setattr(compile_only, "_NEEDED", ("jax",))
    monkeypatch.setenv("COMPILE_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    assert compile_only.run_there("say") == "False None\n"
