"""The MosaicBERT-Base training step on a CPU, beside one large matrix product in the same run.

    python -m benchmarks.training_step [--rounds 9] [--output benchmarks/results/training_step.md]

One step is forward, backward and update of 8 rows of 128 real tokens, float32, dropout 0.1, 30%
masking. Its rate is 737 MFLOP a token (the fixed numerator of MFU) over its time. In each round the
matrix product and the step take turns, and their ratio is taken within the round, since a shared
machine's speed drifts.
"""

import argparse
import datetime
import functools
import os
import pathlib
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from mosaicbert_jax import BertConfig, BertForMaskedLM
from mosaicbert_jax.data.masking import predictions_per_row
from mosaicbert_jax.launch import keep_freed_memory
from mosaicbert_jax.training.flops import model_flops_per_token
from mosaicbert_jax.training.optimizer import make_optimizer
from mosaicbert_jax.training.step import TrainState, train_step

ROWS, LENGTH, MASKING_RATE, MATRIX = 8, 128, 0.3, 4096


def make_batch(config: BertConfig) -> dict[str, jax.Array]:
    """Random tokens in full rows, 30% of them predicted; unused prediction slots stand at 0."""
    rng = np.random.default_rng(0)
    slots = predictions_per_row(LENGTH, MASKING_RATE)
    positions_BP = np.zeros((ROWS, slots), np.int32)
    weights_BP = np.zeros((ROWS, slots), np.float32)
    for row in range(ROWS):
        columns = np.flatnonzero(rng.random(LENGTH) < MASKING_RATE)[:slots]
        positions_BP[row, : len(columns)] = columns
        weights_BP[row, : len(columns)] = 1
    return {
        "tokens_BL": jnp.asarray(rng.integers(5, 30_000, (ROWS, LENGTH)), jnp.int32),
        "segment_ids_BL": jnp.ones((ROWS, LENGTH), jnp.int32),
        "positions_BP": jnp.asarray(positions_BP),
        "labels_BP": jnp.asarray(rng.integers(5, 30_000, (ROWS, slots)), jnp.int32),
        "weights_BP": jnp.asarray(weights_BP),
    }


def compiled_step(config: BertConfig):
    """The jitted step and a state for it."""
    graph, params = nnx.split(nnx.jit(lambda: BertForMaskedLM(config, rngs=nnx.Rngs(0)))())
    params = nnx.to_pure_dict(params)
    optimizer = make_optimizer(
        peak_learning_rate=5e-4, b1=0.9, b2=0.98, eps=1e-6, weight_decay=1e-5
    )
    state = TrainState(params, jax.jit(optimizer.init)(params), jnp.zeros((), jnp.int32))
    step = functools.partial(train_step, graph=graph, optimizer=optimizer)
    return jax.jit(step, donate_argnums=0), state


def seconds(function) -> tuple[float, object]:
    """Wall time of a call, until its results are there; and the results."""
    start = time.perf_counter()
    results = jax.block_until_ready(function())
    return time.perf_counter() - start, results


def measure(rounds: int) -> list[tuple[float, float]]:
    """(FLOP/s of the matrix product, FLOP/s of the step) of each round."""
    keep_freed_memory()  # as train.py does on a CPU
    config = BertConfig.mosaicbert_base()
    batch, (step, state) = make_batch(config), compiled_step(config)
    rate, key = jnp.float32(1e-4), jax.random.key(0)
    matrix = jax.random.normal(key, (MATRIX, MATRIX), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    step_flops = ROWS * LENGTH * model_flops_per_token(
        config, sequence_length=LENGTH, masking_rate=MASKING_RATE
    )  # fmt: skip
    found = []
    for turn in tqdm(range(rounds + 2), desc="rounds"):
        product_seconds, _ = seconds(lambda: multiply(matrix, matrix))
        # Bound now, not when called: the state of the round before is donated.
        step_seconds, (state, _) = seconds(functools.partial(step, state, batch, rate, key))
        if turn >= 2:  # the first compiles, the second still allocates
            found.append((2.0 * MATRIX**3 / product_seconds, step_flops / step_seconds))
    return found


def report(found: list[tuple[float, float]]) -> str:
    """The table, with machine and versions."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    ratios = sorted(step / product for product, step in found)
    flops = model_flops_per_token(
        BertConfig.mosaicbert_base(), sequence_length=LENGTH, masking_rate=MASKING_RATE
    )
    step_rate = statistics.median(step for _, step in found)
    lines = [
        f"# Training step of MosaicBERT-Base, {ROWS} x {LENGTH} tokens, float32, dropout 0.1",
        "",
        f"{datetime.date.today()}, {os.cpu_count()} cores of {cpu}, Python "
        f"{platform.python_version()}, jax {jax.__version__}",
        "`python -m benchmarks.training_step`",
        "",
        f"| | median of {len(found)} rounds | lowest | highest |",
        "| --- | --- | --- | --- |",
    ]
    for name, values, scale, unit in (
        (f"matrix product {MATRIX}^3", [p for p, _ in found], 1e9, "GFLOP/s"),
        ("training step", [s for _, s in found], 1e9, "GFLOP/s"),
        ("step / matrix product, in pairs", ratios, 0.01, "%"),
    ):
        middle, low, high = statistics.median(values), min(values), max(values)
        lines.append(
            f"| {name} | {middle / scale:.1f} {unit} | {low / scale:.1f} | {high / scale:.1f} |"
        )
    lines.append("")
    lines.append(
        f"{step_rate / flops:.0f} tokens/s at {flops / 1e6:.0f} MFLOP a token (median step)."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=pathlib.Path, help="also write the table there")
    arguments = parser.parse_args()
    text = report(measure(arguments.rounds))
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
