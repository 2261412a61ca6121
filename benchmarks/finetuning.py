"""What pretraining is worth on real labels, and what packing is worth in finetuning.

    python -m benchmarks.finetuning --pretrained runs/quickstart --ratings FILE --work DIR \\
        [--output benchmarks/finetuning.md]

FILE is movieReviewSnippets_GroundTruth.txt of VADER's data (`id TAB mean rating TAB text`; in the
package vaderSentiment 0.5, additional_resources/hutto_ICWSM_2014.tar.gz). Snippets rated above 0.5
are positive and below -0.5 negative; a tenth is held out by the digest of its text. The same
recipe finetunes the pretrained model and one of the same architecture with random weights. DIR
keeps the runs: an interrupted benchmark goes on.

Packing: forward and backward of steps of 32 examples on the same texts, packed into rows, or each
in a row of its own, padded to the longest of the batch or to the model's limit; in turns.
"""

import argparse
import csv
import datetime
import itertools
import json
import os
import pathlib
import platform
import shutil
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from configs import finetune as recipe
from mosaicbert_jax import BertForMaskedLM
from mosaicbert_jax.data.encoding import document_digest
from mosaicbert_jax.data.pipeline import Position, scattered
from mosaicbert_jax.finetuning.batching import training_batches
from mosaicbert_jax.finetuning.encoded import EncodedExamples
from mosaicbert_jax.finetuning.examples import Example, held_out
from mosaicbert_jax.finetuning.finetuning import RESULTS_FILE, Finetuning, finetune
from mosaicbert_jax.finetuning.origin import Origin
from mosaicbert_jax.training import checkpoints, workdir

SEEDS = (19, 8364, 717)
STARTS = ("pretrained", "random weights")
SIZES = ((1000, 5), (None, 3))  # examples to train on, None for all; epochs
BATCH, LENGTH, LEARNING_RATE = 32, 128, 5e-4
PACKED, LONGEST, LIMIT = (
    "packed",
    "padded to the longest of the batch, in eights",
    f"padded to {LENGTH}",
)


def labelled(ratings: pathlib.Path, folder: pathlib.Path, most: int | None) -> pathlib.Path:
    """The snippets with a clear rating as a CSV file, with at most so many to train on."""
    rows = []
    for line in ratings.read_text(encoding="utf-8", errors="replace").splitlines():
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) > 0.5:
            label = "positive" if float(rating) > 0 else "negative"
            rows.append(Example(text, None, label, str(len(rows))))
    train, dev = held_out(rows, recipe.get_config().data.dev_fraction)
    # Drawn by digest: the file has long stretches of one kind.
    kept = {*sorted(train, key=lambda row: document_digest(row.first)[1])[:most], *dev}
    path = folder / f"snippets-{most or 'all'}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows((row.first, row.label) for row in rows if row in kept)
    return path


def random_start(pretrained: pathlib.Path, folder: pathlib.Path, seed: int) -> pathlib.Path:
    """A workdir with the architecture and tokenizer of a run, and random weights."""
    if not (folder / workdir.CHECKPOINTS).is_dir():
        origin = Origin.open(pretrained)
        shutil.copytree(pretrained / workdir.TOKENIZER, folder / workdir.TOKENIZER)
        workdir.write_converted(folder, origin.model, source="random weights")
        checkpoints.save_params(folder, BertForMaskedLM(origin.model, rngs=nnx.Rngs(seed)))
    return folder


def settings(origin: pathlib.Path, data: pathlib.Path, seed: int, epochs: int):
    """The recipe of configs/finetune.py at the size of these models."""
    config = recipe.get_config()
    config.seed, config.init_from, config.data.path = seed, str(origin), str(data)
    config.data.max_seq_len = LENGTH
    config.optimizer.learning_rate = LEARNING_RATE
    config.optimizer.weight_decay = LEARNING_RATE / 10
    config.train.batch_size, config.train.duration = BATCH, f"{epochs}ep"
    return config


def scores(pretrained: pathlib.Path, ratings: pathlib.Path, work: pathlib.Path) -> dict:
    """(examples to train on or None for all, epochs, start) -> the scores of each seed."""
    found: dict[tuple, list[dict[str, float]]] = {}
    for (most, epochs), start, seed in itertools.product(SIZES, STARTS, SEEDS):
        folder = work / "-".join(map(str, (most or "all", start.split()[0], seed)))
        origin = pretrained
        if start != "pretrained":
            origin = random_start(pretrained, work / f"start-{seed}", seed)
        if not (folder / RESULTS_FILE).exists():
            finetune(settings(origin, labelled(ratings, work, most), seed, epochs), folder)
        results = json.loads((folder / RESULTS_FILE).read_text())
        found.setdefault((most, epochs, start), []).append(results["scores"])
    return found


def padded(examples: EncodedExamples, batch: dict, length: int | None) -> dict:
    """The examples of a packed batch, each in a row of its own."""
    tokens, segments = batch["tokens_BL"].ravel(), batch["segment_ids_BL"].ravel()
    first_S = batch["first_positions_S"]
    lengths_S = [int(np.argmax(np.append(segments[i:], -1) != segments[i])) for i in first_S]
    width = length or -(-max(lengths_S) // 8) * 8
    shape = (len(first_S), width)
    flat = np.concatenate([np.arange(n) for n in lengths_S])
    places_T = np.repeat(np.arange(len(first_S)) * width, lengths_S) + flat
    taken_T = np.repeat(first_S, lengths_S) + flat
    types = batch["token_type_ids_BL"].ravel()
    return batch | {
        "tokens_BL": scattered(shape, places_T, tokens[taken_T], examples.pad_id),
        "segment_ids_BL": scattered(shape, places_T, 1),
        "token_type_ids_BL": scattered(shape, places_T, types[taken_T]),
        "first_positions_S": (np.arange(len(first_S)) * width).astype(np.int32),
    }


def packing(run: Finetuning, rounds: int) -> dict[str, list[tuple[float, int]]]:
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


def report(found: dict, steps: dict, run: Finetuning, pretrained: pathlib.Path) -> str:
    """Both tables, with machine, versions and command."""
    info = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.split(":")[1].strip() for line in info if line.startswith("model name"))
    last = json.loads((pretrained / "metrics.jsonl").read_text().splitlines()[-1])
    model, tokens = run.model, checkpoints.restore_progress(pretrained).tokens
    lines = [
        "# Finetuning: what pretraining and packing are worth",
        "",
        f"{datetime.date.today()}, {os.cpu_count()} cores of {cpu} shared with other work, Python "
        f"{platform.python_version()}, jax {jax.__version__}",
        "`python -m benchmarks.finetuning --pretrained runs/quickstart --ratings FILE --work DIR`",
        "",
        f"MosaicBERT of {model.num_hidden_layers} layers of {model.hidden_size}, vocabulary "
        f"{model.vocab_size:,}; movie-review snippets of VADER's data, positive against negative, "
        f"{len(run.dev['']):,} held out. Batches of {BATCH}, learning rate {LEARNING_RATE:g}, "
        f"seeds {', '.join(map(str, SEEDS))}. The pretrained model had seen {tokens:,} tokens of "
        f"the embedded corpus (held-out masked accuracy {last['eval_masked_accuracy']:.3f}).",
        "",
        "| trained on | epochs | start | held-out accuracy, mean | lowest | highest | loss, mean |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_score_row(key, results, len(run.train)) for key, results in found.items()),
        "",
        f"Forward and backward of the same {BATCH} examples, the ways in turns, "
        f"{len(steps[PACKED])} batches; the losses agree:",
        "",
        "| a step's examples | median step | beside packed, in pairs | slots that hold a token |",
        "| --- | --- | --- | --- |",
        *(_step_row(way, steps, run) for way in steps),
    ]
    return "\n".join(lines) + "\n"


def _score_row(key: tuple, results: list[dict[str, float]], all_examples: int) -> str:
    most, epochs, start = key
    accuracies = [scores["accuracy"] for scores in results]
    loss = statistics.fmean(scores["loss"] for scores in results)
    return (
        f"| {most or all_examples:,} | {epochs} | {start} | {statistics.fmean(accuracies):.4f} | "
        f"{min(accuracies):.4f} | {max(accuracies):.4f} | {loss:.4f} |"
    )


def _step_row(way: str, steps: dict, run: Finetuning) -> str:
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
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=pathlib.Path, help="also write the tables there")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = scores(arguments.pretrained, arguments.ratings, arguments.work)
    data = labelled(arguments.ratings, arguments.work, None)
    config = settings(arguments.pretrained, data, SEEDS[0], epochs=1)
    run = Finetuning.prepare(config, arguments.work / "packing")
    text = report(found, packing(run, arguments.rounds), run, arguments.pretrained)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
