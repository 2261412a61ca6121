"""Floating-point operations of a training step, and what the hardware could do."""

import functools
import math
import re
import statistics
import time

import jax
import jax.numpy as jnp

from mosaicbert_jax.modeling.config import BertConfig

# Dense bfloat16 peaks of the manufacturer's data sheets, FLOP/s, by a pattern of whole words of the
# name that the driver reports; the first that fits.
_PEAK_BF16 = (
    (r"H[12]00 NVL", 835e12),
    (r"H100 PCIe", 756e12),
    (r"GH200|H200|H100", 989.4e12),
    (r"H20", 148e12),
    (r"A100", 312e12),
    (r"A10G", 70e12),
    (r"A10", 125e12),
    (r"L4", 121e12),
    (r"L40S", 362e12),
    (r"L40", 181e12),
    (r"B200", 2250e12),
    (r"RTX A6000", 154.8e12),
    # Not their namesakes, such as the RTX 4090 D and the RTX 4090 Laptop GPU.
    (r"RTX 3090(?! (Ti|D|Laptop))", 71e12),
    (r"RTX 4090(?! (Ti|D|Laptop))", 165.2e12),
)
_SIZE, _CPU_SIZE = 8192, 2048  # of the product that a peak is measured with


def model_flops_per_token(
    config: BertConfig, *, sequence_length: int, masking_rate: float
) -> float:
    """FLOPs that training on one token takes, forward and backward: the numerator of MFU.

    6 for each weight of the layers, 12 for each layer, hidden unit and key of the attention, and
    the masked-language-model head on the masked share: 737 MFLOP for MosaicBERT-Base at 128
    tokens and 30%. Layers with a sliding window count its keys; those from narrow_from_layer on
    compute keys and values of all tokens, and all else of the masked share. Fixed by the
    architecture: what is skipped or computed twice does not count.
    """
    hidden, feed_forward = config.hidden_size, config.intermediate_size
    feed_forward_matrices = 3 if config.is_gated else 2
    layer_weights = 4 * hidden**2 + feed_forward_matrices * hidden * feed_forward
    keys_and_values = 2 * hidden**2
    narrow_from = config.narrow_from_layer
    narrow_from = math.inf if narrow_from is None else narrow_from
    layers = 0.0
    for layer in range(config.num_hidden_layers):
        window = config.window_of(layer)
        keys = sequence_length if window is None else min(2 * window + 1, sequence_length)
        of_queries = 6 * (layer_weights - keys_and_values) + 12 * hidden * keys
        computed = masking_rate if layer >= narrow_from else 1.0
        layers += 6 * keys_and_values + computed * of_queries
    head = 6 * masking_rate * (hidden**2 + hidden * config.vocab_size)
    return layers + head


def peak_flops() -> float:
    """The peak of all devices together, FLOP/s: from the data sheet, or measured.

    Measured with a bfloat16 product on GPUs, a float32 one on a CPU.
    """
    device = jax.devices()[0]
    peak = data_sheet_peak(device.device_kind)
    if peak is not None:
        return peak * jax.device_count()
    if device.platform == "cpu":
        return measure_matmul(_CPU_SIZE, "float32")  # all its devices share the cores
    return measure_matmul(_SIZE, "bfloat16") * jax.device_count()


def data_sheet_peak(device_kind: str) -> float | None:
    """Of one device, FLOP/s; None: this one's is measured."""
    found = (peak for pattern, peak in _PEAK_BF16 if re.search(rf"\b(?:{pattern})\b", device_kind))
    return next(found, None)


@functools.cache  # a suite is many runs of one process
def measure_matmul(size: int, dtype: str, runs: int = 5) -> float:
    """FLOP/s of a square matrix product on the default device, the median of `runs`."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(a, a).block_until_ready()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        multiply(a, a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / statistics.median(seconds)
