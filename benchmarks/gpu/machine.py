"""The card and its versions; what copies and products of the model's shapes reach."""

import platform
import subprocess
from importlib import metadata

import jax
import jax.numpy as jnp

from benchmarks.gpu.tables import attempt, header, row
from mosaicbert_jax.training.flops import data_sheet_peak
from pallas_kernels.timing import seconds_per_call

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "torch", "transformers", "triton")
# (tokens, inputs, outputs): the feed-forward, its output, Wqkv, attention's output, the decoder.
PRODUCTS = (
    (32768, 768, 6144),
    (32768, 3072, 768),
    (32768, 768, 2304),
    (32768, 768, 768),
    (2048, 768, 30528),
)


def main(rehearse: bool) -> None:
    header("what", "")
    row("Python", platform.python_version())
    for package in PACKAGES:
        attempt(package, lambda package=package: [metadata.version(package)], ours=False)
    device = jax.devices()[0]
    row("devices", f"{len(jax.devices())} x {device.device_kind}")
    peak = data_sheet_peak(device.device_kind)
    row("peak by data sheet", f"{peak / 1e12:.0f} TFLOP/s" if peak else "not known")
    query = "name,driver_version,power.limit,clocks.max.sm,clocks.max.mem,memory.total"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    attempt(
        f"nvidia-smi {query}",
        lambda: [
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        ],
        ours=False,
    )
    header("product in bfloat16", "TFLOP/s")
    key = jax.random.key(0)

    def speed(function, flops, *operands):
        return [f"{flops / seconds_per_call(jax.jit(function), *operands) / 1e12:.1f}"]

    largest = 256 if rehearse else 8192
    square = jax.random.normal(key, (largest, largest), jnp.bfloat16)
    attempt(f"{largest}³", lambda: speed(jnp.dot, 2 * largest**3, square, square))
    for tokens, inputs, outputs in [(64, 32, 96)] if rehearse else PRODUCTS:
        flops = 2 * tokens * inputs * outputs
        x = jax.random.normal(key, (tokens, inputs), jnp.bfloat16)
        kernel = jax.random.normal(key, (inputs, outputs), jnp.bfloat16)
        d_out = jax.random.normal(key, (tokens, outputs), jnp.bfloat16)
        shape = f"{tokens} x {inputs} x {outputs}"
        attempt(shape, lambda a=x, b=kernel, f=flops: speed(jnp.dot, f, a, b))

        def weight_gradient(x, d_out):
            return jnp.matmul(x.T, d_out, preferred_element_type=jnp.float32)

        attempt(
            f"{shape}, the weights' gradient in float32",
            lambda a=x, b=d_out, f=flops, g=weight_gradient: speed(g, f, a, b),
        )
    header("copy, read and written", "TB/s")
    for dtype in ("float32", "bfloat16"):
        array = jnp.ones((2**12 if rehearse else 2**29,), dtype)
        seconds = seconds_per_call(jax.jit(lambda x: x + 1), array)
        row(dtype, f"{2 * array.nbytes / seconds / 1e12:.3f}")
