"""What the hardware counts of six kernels, and whether one has data races.

By NVIDIA's `ncu` and `compute-sanitizer`, where they are; the card's clocks stay as they are.
"""

import functools
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.inputs import packed_ids
from benchmarks.gpu.tables import attempt, header, row
from pallas_kernels import (
    alibi_attention_qkv,
    cross_entropy_and_gradient,
    geglu_linear,
    residual_norm,
)

KERNELS = (
    "alibi_attention_forward",
    "alibi_attention_backward",
    "residual_norm_forward",
    "residual_norm_backward",
    "geglu_backward",
    "cross_entropy_and_gradient",
)
_METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__inst_executed.sum",
    "sm__inst_executed.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
)
_RUN_ONCE = "from benchmarks.gpu.counters import run_once; run_once({rehearse})"


def run_once(rehearse: bool) -> None:
    """Every kernel, at the shapes of MosaicBERT-Base."""
    backend = "interpret" if rehearse else "triton"
    rows, length, heads, head_size = (1, 32, 1, 64) if rehearse else (64, 512, 12, 64)
    width, rng = heads * head_size, np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape, np.float32), jnp.bfloat16)

    ids_BL = jnp.asarray(packed_ids(rng, rows, length))
    attend = functools.partial(alibi_attention_qkv, segment_ids_BL=ids_BL, backend=backend)
    x_BLE, ones_E = normal(rows, length, width), jnp.ones(width)
    norm = functools.partial(residual_norm, epsilon=1e-12, backend=backend)
    kernel_FE = jnp.ones((4 * width, width))
    geglu = functools.partial(geglu_linear, kernel_FE=kernel_FE, backend=backend)

    def total(qkv, x_BLE, gate_up):
        out_BLE = attend(qkv).reshape(x_BLE.shape)
        out_BLE = norm(out_BLE, x_BLE, ones_E, ones_E) + geglu(gate_up)
        return out_BLE.astype(jnp.float32).sum()

    operands = normal(rows, length, 3, heads, head_size), x_BLE, normal(rows, length, 2, 4 * width)
    losses = functools.partial(cross_entropy_and_gradient, backend=backend)
    count = 8 if rehearse else 2048
    predictions = normal(count, 128 if rehearse else 30528), jnp.zeros(count, int), jnp.ones(count)
    jax.block_until_ready((jax.jit(jax.grad(total, (0, 1, 2)))(*operands), losses(*predictions)))


def main(rehearse: bool) -> None:
    print(__doc__)
    header("tool", "")
    code = _RUN_ONCE.format(rehearse=rehearse)
    subprocess.run([sys.executable, "-c", code], check=True)
    row("the kernels ran", "PASS")
    for tool, command, read in (
        ("ncu", _ncu_command(), ncu_rows),
        ("compute-sanitizer", _sanitizer_command(), _last_lines),
    ):
        if shutil.which(tool) is None:
            row(tool, "not to be had: it is not installed")
            continue
        attempt(tool, lambda c=command, r=read: r(_said([*c, sys.executable, "-c", code])))


def _ncu_command() -> list[str]:
    names = "regex:" + "|".join(KERNELS)
    options = ["--csv", "--clock-control", "none", "--metrics", ",".join(_METRICS)]
    return ["ncu", *options, "--kernel-name", names, "--launch-count", str(len(KERNELS))]


def _sanitizer_command() -> list[str]:
    chosen = ["--kernel-name", "kernel_substring=alibi_attention_backward", "--launch-count", "1"]
    return ["compute-sanitizer", "--tool", "racecheck", *chosen]


def _said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr).strip().splitlines()[-1])
    return done.stdout


def ncu_rows(said: str) -> list[str]:
    """The kernels with their metrics, from ncu's CSV: a cell for each kernel."""
    lines = [line for line in said.splitlines() if line.startswith('"')]
    columns = [name.strip('"') for name in lines[0].split('","')]
    name, metric, value = (columns.index(c) for c in ("Kernel Name", "Metric Name", "Metric Value"))
    found: dict[str, list[str]] = {}
    for line in lines[1:]:
        cells = [cell.strip('"') for cell in line.split('","')]
        found.setdefault(cells[name], []).append(f"{cells[metric]} {cells[value]}")
    return [f"{kernel}: {', '.join(metrics)}" for kernel, metrics in found.items()]


def _last_lines(said: str) -> list[str]:
    last = said.strip().splitlines()[-1]
    return [f"{'PASS' if '0 hazards' in last else 'FAILED'}: {last}"]
