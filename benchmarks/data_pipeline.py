"""From prepared shards to batches on the device, on one core; and resuming at a position.

    python -m benchmarks.data_pipeline [--data DIR] [--rounds 9] [--output FILE]

Speed: the batches of the base recipe (524,288 slots; 30% masking) as the training loop takes them,
made by its thread and placed on the device, all on one core. Real tokens are counted, padding is
not. Two data sets are generated, with lengths like those of web text cut at 128 tokens; --data adds
one of yours. In each round all cases take turns with a plain copy of 256 MB.

Restoring: from opening a generated data set of 100 million sequences to its first batch on the
device, in turn at batch 0, at batch 1 and where batch 60,000 falls. How many rows a window has is
known when it is planned, and planning all before would take minutes: that position is the number of
rows before it over the mean of 16 windows. A batch that begins within a window needs the next one
too, so the start of a window is compared with batch 0, and the place within it with batch 1. The
index is real, 800 MB; the tokens are a file of zeros that takes no space. All is in a temporary
folder, and the files are in the page cache.
"""

import argparse
import contextlib
import dataclasses
import datetime
import hashlib
import itertools
import os
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
from tqdm import tqdm

from mosaicbert_jax.data.dataset import (
    DatasetMetadata,
    ShardRecord,
    SplitRecord,
    TokenDataset,
    TokenizerRecord,
    shard_paths,
)
from mosaicbert_jax.data.mixture import Mixture
from mosaicbert_jax.data.packing import RowPlanner
from mosaicbert_jax.data.pipeline import Position, batches
from mosaicbert_jax.text.vocabulary import SpecialTokenIds
from mosaicbert_jax.training.sharding import make_mesh, place_batch

SLOTS, SEED, MASKING_RATE, WINDOW = 524_288, 17, 0.3, 8192
VOCABULARY, MAX_SEQ_LEN = 30_522, 128
BATCHES = 4  # a round
FAR = 60_000
LARGE = 100_000_000
SHARD_SEQUENCES = 400_000


def generate(folder: pathlib.Path, sequences: int, *, empty: bool, seed: int = 0) -> pathlib.Path:
    """A data set of random tokens, or of zeros that take no space."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    shards = []
    for first in range(0, sequences, SHARD_SEQUENCES):
        count = min(SHARD_SEQUENCES, sequences - first)
        lengths = np.exp(generator.normal(4.3, 0.9, count)).clip(4, MAX_SEQ_LEN).astype(np.uint64)
        offsets = np.concatenate([np.zeros(1, np.uint64), np.cumsum(lengths)])
        name, tokens = f"train-{len(shards):05d}", int(offsets[-1])
        np.save(folder / f"{name}.offsets.npy", offsets)
        path = folder / f"{name}.tokens.npy"
        if empty:
            header = {"descr": "<u2", "fortran_order": False, "shape": (tokens,)}
            with path.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                file.truncate(file.tell() + 2 * tokens)
        else:
            np.save(path, generator.integers(1000, VOCABULARY, tokens, dtype=np.uint16))
        digests = [
            "" if empty else hashlib.sha256(each.read_bytes()).hexdigest()
            for each in shard_paths(folder, name)
        ]
        shards.append(ShardRecord(name, count, tokens, *digests))
    tokens = sum(shard.tokens for shard in shards)
    special = SpecialTokenIds(0, 100, 101, 102, 103)
    metadata = DatasetMetadata(
        folder=folder,
        max_seq_len=MAX_SEQ_LEN,
        tokenizer=TokenizerRecord("", "", VOCABULARY, 30_528, special),
        options={},
        sources=(),
        splits={"train": SplitRecord(sequences, sequences, tokens, 0, tuple(shards))},
        dropped_duplicates=0,
        dropped_empty=0,
    )
    (folder / "dataset.json").write_text(metadata.to_json(), encoding="utf-8")
    return folder


def settings(row_length: int) -> dict:
    return {
        "row_length": row_length,
        "rows_per_batch": SLOTS // row_length,
        "seed": SEED,
        "masking_rate": MASKING_RATE,
        "window_size": WINDOW,
    }


def speed(dataset: TokenDataset | Mixture, row_length: int, start: Position) -> tuple:
    """Real tokens a second over some batches from `start`, and the position after them."""
    mesh = make_mesh(-1)
    with contextlib.closing(batches(dataset, position=start, **settings(row_length))) as stream:
        tokens, begun = 0, time.perf_counter()
        for batch in itertools.islice(stream, BATCHES):
            jax.block_until_ready(place_batch(mesh, batch.arrays))
            tokens += batch.tokens
        return tokens / (time.perf_counter() - begun), batch.position


def copy_speed() -> float:
    """Bytes a second of a plain copy."""
    source = np.ones(2**28, np.uint8)
    target = np.empty_like(source)
    target[:] = 0  # its pages are there
    begun = time.perf_counter()
    np.copyto(target, source)
    return len(source) / (time.perf_counter() - begun)


def speeds(folder: pathlib.Path, data: str | None, rounds: int) -> dict[str, list[float]]:
    """Real tokens a second of each case and bytes a second of the copy, a value a round."""
    sets = [str(generate(folder / str(n), 200_000, empty=False, seed=n)) for n in range(2)]
    cases = {
        "generated, rows of 512": (TokenDataset(sets[0]), 512),
        "generated, rows of 128": (TokenDataset(sets[0]), 128),
        "mixture of both generated, 0.7 and 0.3, rows of 512": (
            Mixture.open(((sets[0], 0.7), (sets[1], 0.3))),
            512,
        ),
    }
    if data:
        cases["--data, rows of 512"] = (TokenDataset(data), 512)
        cases["--data, rows of 128"] = (TokenDataset(data), 128)
    found = {name: [] for name in (*cases, "copy")}
    positions = dict.fromkeys(cases, Position())
    for turn in tqdm(range(rounds + 1), desc="speed"):
        values = {"copy": copy_speed()}
        for name, (dataset, row_length) in cases.items():
            values[name], positions[name] = speed(dataset, row_length, positions[name])
        for name, value in values.items():
            if turn:  # the first warms up
                found[name].append(value)
    return found


def far_position(dataset: TokenDataset) -> Position:
    """About where batch 60,000 starts."""
    planner = RowPlanner(dataset, 512, SEED, packing=True, window_size=WINDOW)
    mean = statistics.mean(planner.plan(0, window).num_rows for window in range(16))
    windows, rest = divmod(FAR * SLOTS // 512, mean)
    epoch, window = divmod(int(windows), planner.num_windows)
    return Position(epoch, window, int(rest))


def restoring(folder: pathlib.Path, rounds: int) -> tuple[dict[str, list[float]], Position]:
    """Seconds to the first batch at each position, a value a round."""
    path = generate(folder / "large", LARGE, empty=True)
    dataset, mesh = TokenDataset(path), make_mesh(-1)

    def first_batch(position: Position) -> tuple[float, Position]:
        begun = time.perf_counter()
        with contextlib.closing(
            batches(TokenDataset(path), position=position, **settings(512))
        ) as stream:
            batch = next(stream)
            jax.block_until_ready(place_batch(mesh, batch.arrays))
            return time.perf_counter() - begun, batch.position

    second, far = first_batch(Position())[1], far_position(dataset)
    positions = {
        "batch 0": Position(),
        f"start of the window of batch {FAR:,}": dataclasses.replace(far, row=0),
        "batch 1": second,
        f"batch {FAR:,}": far,
    }
    found = {name: [] for name in positions}
    for turn in tqdm(range(rounds + 1), desc="restoring"):
        for name in list(positions)[:: 1 if turn % 2 else -1]:
            seconds, _ = first_batch(positions[name])
            if turn:
                found[name].append(seconds)
    return found, far


def row(name: str, values: list[float], shown: Callable[[float], str]) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"| {name} | {shown(middle)} | {shown(low)} | {shown(high)} |"


def report(
    found: dict[str, list[float]], restored: dict[str, list[float]], far: Position, data: str | None
) -> str:
    """Both tables, with machine, versions and command."""
    info = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.split(":")[1].strip() for line in info if line.startswith("model name"))
    rounds = len(found["copy"])
    head = f"| | median of {rounds} rounds | lowest | highest |\n| --- | --- | --- | --- |"
    lines = [
        "# From shards to batches on the device",
        "",
        f"{datetime.date.today()}, one core of {os.cpu_count()} of {cpu}, Python "
        f"{platform.python_version()}, jax {jax.__version__}, numpy {np.__version__}",
        f"`python -m benchmarks.data_pipeline{' --data DIR' if data else ''}`",
        "",
        f"Real tokens a second, batches of {SLOTS:,} slots, {BATCHES} a round (target: 400,000):",
        "",
        head,
        *(row(name, found[name], lambda v: f"{v:,.0f}") for name in found if name != "copy"),
        row("plain copy of 256 MB", found["copy"], lambda v: f"{v / 1e9:.1f} GB/s"),
        "",
    ]
    if data:
        metadata = DatasetMetadata.load(data)
        split = metadata.splits["train"]
        lines += [
            f"--data: {split.sequences:,} sequences of {split.tokens / split.sequences:.0f} tokens "
            f"on average, {metadata.vocab_size:,} vocabulary entries.",
            "",
        ]
    lines += [
        f"Going on: opening {LARGE:,} sequences in {-(-LARGE // SHARD_SEQUENCES)} shards, and the "
        "first batch, rows of 512:",
        "",
        head,
        *(row(name, restored[name], lambda v: f"{1000 * v:.0f} ms") for name in restored),
        "",
        f"Batch {FAR:,} is about at row {far.row:,} of window {far.window:,} of epoch "
        f"{far.epoch}, epochs counted from 0 (the rows before it over the mean rows of a window). "
        "It and batch 1 begin within a window and need the next one too; the others need one.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="a prepared data set, measured too")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=pathlib.Path, help="also write the tables there")
    arguments = parser.parse_args()
    # Before JAX starts its threads: they inherit it.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        found = speeds(folder, arguments.data, arguments.rounds)
        text = report(found, *restoring(folder, arguments.rounds), arguments.data)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
