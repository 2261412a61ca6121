"""What packing is worth in finetuning.

    python -m benchmarks.finetuning_batching --pretrained runs/mosaicbert --ratings FILE \\
        [--output benchmarks/results/finetuning_batching.md]

runs/mosaicbert and FILE: see experiments/finetuning.py.

Forward and backward of steps of 32 movie-review snippets,
packed into rows, or each in a row of its own, padded to the longest of the batch or to the model's
limit; in turns, on the same examples.
"""

import argparse
import datetime
import itertools
import pathlib
import platform
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from benchmarks.preparation import processor
from configs import finetune as recipe
from experiments.finetuning_tasks import TASKS, write_task
from mosaicbert_jax.data.pipeline import Position, scattered
from mosaicbert_jax.finetuning.batching import training_batches
from mosaicbert_jax.finetuning.encoded import EncodedExamples
from mosaicbert_jax.finetuning.finetuning import Finetuning
from mosaicbert_jax.training import checkpoints

BATCH, LENGTH = 32, 128
PACKED, LONGEST, LIMIT = (
    "packed",
    "padded to the longest of the batch, in eights",
    f"padded to {LENGTH}",
)


def padded(
    examples: EncodedExamples, batch: dict[str, np.ndarray], length: int | None
) -> dict[str, np.ndarray]:
    """The examples of a packed batch, each in a row of its own.

    Args:
      length: of the rows; None: the longest example's, rounded up to a multiple of 8.
    """
    used = batch["weights_S"] > 0
    tokens, segments_BL = batch["tokens_BL"].ravel(), batch["segment_ids_BL"]
    first_S = batch["first_positions_S"][used]
    rows_S, columns_S = np.divmod(first_S, segments_BL.shape[1])
    is_own_SL = segments_BL[rows_S] == segments_BL[rows_S, columns_S][:, None]
    lengths_S = is_own_SL.sum(axis=1)
    width = length or -(-lengths_S.max() // 8) * 8
    shape = (len(first_S), width)
    flat = np.concatenate([np.arange(n) for n in lengths_S])
    places_T = np.repeat(np.arange(len(first_S)) * width, lengths_S) + flat
    taken_T = np.repeat(first_S, lengths_S) + flat
    types = batch["token_type_ids_BL"].ravel()
    return {
        "tokens_BL": scattered(shape, places_T, tokens[taken_T], examples.pad_id),
        "segment_ids_BL": scattered(shape, places_T, 1),
        "token_type_ids_BL": scattered(shape, places_T, types[taken_T]),
        "first_positions_S": (np.arange(len(first_S)) * width).astype(np.int32),
        "labels_S": batch["labels_S"][used],
        "weights_S": batch["weights_S"][used],
    }


def prepared(pretrained: pathlib.Path, ratings: pathlib.Path, folder: pathlib.Path) -> Finetuning:
    """A run on all snippets, of which nothing but its batches and its loss is used."""
    config = recipe.get_config()
    train, dev = write_task(TASKS["reviews"], ratings, folder)
    config.init_from, config.data.path, config.data.dev_path = map(str, (pretrained, train, dev))
    config.data.max_seq_len, config.train.batch_size = LENGTH, BATCH
    return Finetuning.prepare(config, folder / "run")


def step_times(run: Finetuning, rounds: int) -> dict[str, list[tuple[float, int]]]:
    """way -> (seconds, slots) of each round: forward and backward of the same 32 examples."""
    params = nnx.to_pure_dict(nnx.state(checkpoints.build_model(run.record, 0), nnx.Param))

    def loss(params, batch):
        return run.objective.sums(nnx.merge(run.graph, params), batch, None, 1)[0]

    step = jax.jit(jax.value_and_grad(loss))
    stream = training_batches(
        run.train, Position(), seed=1, size=BATCH, row_length=LENGTH, shards=1
    )
    found: dict[str, list[tuple[float, int]]] = {PACKED: [], LONGEST: [], LIMIT: []}
    for batch in tqdm(itertools.islice(stream, rounds), total=rounds, desc="steps"):
        ways = {
            PACKED: batch.arrays,
            LONGEST: padded(run.train, batch.arrays, None),
            LIMIT: padded(run.train, batch.arrays, LENGTH),
        }
        values = []
        for way, arrays in ways.items():
            arrays = jax.tree.map(jnp.asarray, arrays)
            jax.block_until_ready(step(params, arrays))  # compiled, once for each shape
            begun = time.perf_counter()
            value, _ = jax.block_until_ready(step(params, arrays))
            found[way].append((time.perf_counter() - begun, arrays["tokens_BL"].size))
            values.append(float(value))
        np.testing.assert_allclose(values, values[0], rtol=1e-4)
    return found


def report(steps: dict[str, list[tuple[float, int]]], run: Finetuning) -> str:
    """The table, with machine, versions and command."""
    model, rounds = run.model, len(steps[PACKED])
    lines = [
        "# Finetuning: what packing is worth",
        "",
        f"{datetime.date.today()}, {processor()}, shared with other "
        f"work, Python {platform.python_version()}, jax {jax.__version__}",
        "`python -m benchmarks.finetuning_batching --pretrained runs/mosaicbert --ratings FILE "
        f"--rounds {rounds}`",
        "",
        f"MosaicBERT of {model.num_hidden_layers} layers of {model.hidden_size}, vocabulary "
        f"{model.vocab_size:,}, movie-review snippets of VADER's data. Forward and backward of the "
        f"same {BATCH} examples, the ways in turns, {rounds} batches; the losses agree:",
        "",
        "| a step's examples | median step | beside packed, in pairs | slots that hold a token |",
        "| --- | --- | --- | --- |",
        *(_step_row(way, steps, run) for way in steps),
    ]
    return "\n".join(lines) + "\n"


def _step_row(way: str, steps: dict[str, list[tuple[float, int]]], run: Finetuning) -> str:
    pairs = zip(steps[way], steps[PACKED], strict=True)
    ratio = statistics.median(a / b for (a, _), (b, _) in pairs)
    tokens = run.train.lengths(np.arange(len(run.train))).mean() * BATCH
    return (
        f"| {way} | {1e3 * statistics.median(s for s, _ in steps[way]):.0f} ms | {ratio:.2f} | "
        f"{tokens / statistics.fmean(n for _, n in steps[way]):.0%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pretrained", type=pathlib.Path, required=True, help="a run's workdir")
    parser.add_argument("--ratings", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=pathlib.Path, help="also write the table there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        run = prepared(arguments.pretrained, arguments.ratings, pathlib.Path(name))
    text = report(step_times(run, arguments.rounds), run)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
