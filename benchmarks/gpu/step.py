"""Whole training steps: real tokens a second, MFU, memory, and where the time goes by kernel."""

import functools
import time
from typing import Any

import jax

from benchmarks.gpu.inputs import MASKING_RATE, Step, batch_of, config_of
from benchmarks.gpu.kernel_times import by_kernel, traced
from benchmarks.gpu.tables import attempt, header, row
from mosaicbert_jax.planning import gpu_time
from mosaicbert_jax.planning.gpus import GPUS
from mosaicbert_jax.training.flops import model_flops_per_token, peak_flops

CASES = (
    ("mosaicbert_base", 64, 512, "packed"),
    ("mosaicbert_base", 256, 128, "full"),
    ("bert_base", 256, 128, "full"),
    ("modernbert_base", 32, 1024, "packed"),
)
# Of the first case: (name, whether it is compiled for equal bits, options of the compiler).
VARIANTS: tuple[tuple[str, bool, dict[str, Any]], ...] = (
    ("as trained: equal bits, no autotuning", True, {}),
    ("autotuned", False, {}),
    ("without command buffers", True, {"xla_gpu_graph_min_graph_size": 1_000_000}),
)


def main(rehearse: bool) -> None:
    print("20 steps enqueued and waited for once. MFU: on real tokens, padding counts as nothing.")
    header("step", "compiled in", "ms", "real tokens/s", "MFU", "peak memory", "loss")
    steps = 2 if rehearse else 20
    cases = [(name, 2, 64, kind) for name, *_, kind in CASES] if rehearse else CASES
    for case in cases:
        attempt(_name(case), lambda case=case: _measure(case, steps, rehearse))
    for name, deterministic, options in VARIANTS[1:]:
        options = {} if rehearse else options
        attempt(
            f"{_name(cases[0])}, {name}",
            lambda d=deterministic, o=options: _measure(cases[0], steps, rehearse, d, o),
        )
    _profile(cases[0], rehearse)


def _name(case: tuple[str, int, int, str]) -> str:
    model, rows, length, kind = case
    return f"{model} {rows}x{length} {kind}"


def _measure(case, steps: int, rehearse: bool, deterministic: bool = True, options=None):
    model, rows, length, kind = case
    config = config_of(model, rehearse=rehearse)
    batch, tokens = batch_of(config, rows, length, kind)
    begun = time.perf_counter()
    step = Step.compile(config, batch, deterministic=deterministic, options=options)
    compiled_in = time.perf_counter() - begun
    jax.block_until_ready(step.run(3))
    begun = time.perf_counter()
    metrics = step.run(steps)
    jax.block_until_ready((metrics, step.state))
    seconds = (time.perf_counter() - begun) / steps
    flops = tokens * model_flops_per_token(
        config, sequence_length=min(length, 128), masking_rate=MASKING_RATE
    )
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return (
        f"{compiled_in:.0f} s",
        f"{1e3 * seconds:.1f}",
        f"{tokens / seconds:,.0f}",
        f"{100 * flops / seconds / peak_flops():.1f}%",
        f"{peak / 1e9:.1f} GB so far",
        f"{float(metrics['loss']):.3f}",
    )


def _profile(case, rehearse: bool) -> None:
    """Two steps of a case, by kernel: what each moved or computed a second."""
    model, rows, length, kind = case
    config = config_of(model, rehearse=rehearse)
    step = Step.compile(config, batch_of(config, rows, length, kind)[0])
    jax.block_until_ready(step.run(2))
    count = 2
    events = traced(lambda: jax.block_until_ready(step.run(count)))
    first, *columns = (f"a step of {_name(case)}, by kernel", "runs", "ms", "predicted ms")
    header(first, *columns, "share", "GB/s", "TFLOP/s")
    kind = jax.devices()[0].device_kind
    gpu = next((gpu for gpu in GPUS.values() if gpu.name == kind), GPUS["h100"])
    predict = functools.partial(gpu_time.seconds, gpu, sequence_length=min(length, 128))
    found = by_kernel(events, step.program.as_text(), predict)
    whole = sum(kernel.seconds for kernel in found)
    for kernel in found[:30]:
        seconds = kernel.seconds / count
        row(
            kernel.name,
            round(kernel.runs / count),
            f"{1e3 * seconds:.3f}",
            f"{1e3 * kernel.predicted.fast:.3f} to {1e3 * kernel.predicted.slow:.3f}",
            f"{100 * kernel.seconds / whole:.1f}%",
            f"{kernel.bytes * count / kernel.seconds / 1e9:,.0f}" if kernel.bytes else "",
            f"{kernel.flops * count / kernel.seconds / 1e12:,.1f}" if kernel.flops else "",
        )
    if not found:
        row("the profile has no GPU's events", "", "", "", "", "", "")
