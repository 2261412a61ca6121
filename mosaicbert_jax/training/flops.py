"""Floating-point operations of a training step, and what the hardware could do."""

import functools
import statistics
import time

import jax
import jax.numpy as jnp

from mosaicbert_jax.modeling.config import BertConfig

# Dense bfloat16 peaks of the manufacturer's data sheets, FLOP/s, by the device's name.
_PEAK_BF16 = {"A100": 312e12, "H100": 989.4e12, "H200": 989.4e12}


def model_flops_per_token(
    config: BertConfig, *, sequence_length: int, masking_rate: float
) -> float:
    """FLOPs that training on one token takes, forward and backward: the numerator of MFU.

    6 for each weight of the layers, 12 for each layer, hidden unit and key of the attention, and
    the masked-language-model head on the masked share: 737 MFLOP for MosaicBERT-Base at 128
    tokens and 30 %. Fixed by the architecture: what is skipped or computed twice does not count.
    """
    hidden, feed_forward = config.hidden_size, config.intermediate_size
    feed_forward_matrices = 3 if config.feed_forward == "geglu" else 2
    layer_weights = 4 * hidden**2 + feed_forward_matrices * hidden * feed_forward
    layers = config.num_hidden_layers * (6 * layer_weights + 12 * hidden * sequence_length)
    head = 6 * masking_rate * (hidden**2 + hidden * config.vocab_size)
    return layers + head


def peak_flops() -> float:
    """The peak of all devices together, FLOP/s: from the data sheet, or measured."""
    device = jax.devices()[0]
    peak = data_sheet_peak(device.device_kind)
    if peak is not None:
        return peak * jax.device_count()
    return measure_matmul() * (1 if device.platform == "cpu" else jax.device_count())


def data_sheet_peak(device_kind: str) -> float | None:
    """Of one device, FLOP/s; None: this one's is measured."""
    return next((peak for name, peak in _PEAK_BF16.items() if name in device_kind), None)


@functools.cache  # a suite is many runs of one process
def measure_matmul(size: int = 2048, runs: int = 5) -> float:
    """FLOP/s of a large float32 matrix product on the default device, the median of `runs`."""
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    multiply(a, a).block_until_ready()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        multiply(a, a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / statistics.median(seconds)
