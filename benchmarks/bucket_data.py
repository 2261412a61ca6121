"""How long a step waits for data that lie in a bucket, by the side of data on the local disk.

    python -m benchmarks.bucket_data [--steps 200] [--rounds 3] [--output FILE]

The bucket is moto's S3 on 127.0.0.1, behind a proxy that keeps each request for 50 ms and lets 200
MB/s through in all. A run takes the batches of the base recipe (524,288 slots, 30% masking) from a
generated data set of 10 shards, 2 of which are shuffled together, and sleeps until its step is
over: half a second, so that it reads a million tokens a second. In each round it reads from the
bucket into an empty cache, resumes there in the middle with another empty cache, and reads from the
disk. Server and proxy share the machine's cores with it.
"""

import argparse
import contextlib
import datetime
import pathlib
import platform
import statistics
import sys
import tempfile
import time

from benchmarks.data_pipeline import MASKING_RATE, SEED, SLOTS, WINDOW, generate
from benchmarks.preparation import processor
from campaigns import bucket_servers
from campaigns.bucket_servers import Rules
from mosaicbert_jax import buckets
from mosaicbert_jax.data.dataset import TokenDataset
from mosaicbert_jax.data.pipeline import Position, batches
from mosaicbert_jax.data.shard_files import Cache

STEP_SECONDS = 0.5
TOGETHER, SHARDS, SHARD_SEQUENCES = 2, 10, 400_000
DELAY, BYTES_PER_SECOND = 0.05, 200e6
ROW_LENGTH = 512


def run(folder, cache: pathlib.Path, steps: int, position: Position | None) -> tuple[float, float]:
    """Seconds to the first batch; and the share of all later steps that is waited for data."""
    began = time.monotonic()
    dataset = TokenDataset(folder, together=TOGETHER, cache=Cache(cache, 10**9))
    settings = {"row_length": ROW_LENGTH, "rows_per_batch": SLOTS // ROW_LENGTH, "seed": SEED}
    stream = batches(
        dataset, position=position, masking_rate=MASKING_RATE, window_size=WINDOW, **settings
    )
    with contextlib.closing(stream):
        next(stream)
        first = time.monotonic() - began
        waited = 0.0
        for _ in range(steps):
            time.sleep(STEP_SECONDS)
            asked = time.monotonic()
            next(stream)
            waited += time.monotonic() - asked
    return first, waited / (steps * STEP_SECONDS + waited)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {
        "bucket": [],
        "bucket, resumed in the middle": [],
        "local disk": [],
    }
    with tempfile.TemporaryDirectory() as name, bucket_servers.store("s3") as store:
        root = pathlib.Path(name)
        local = generate(root / "data", SHARDS * SHARD_SEQUENCES, empty=False)
        data = buckets.place(store.url("data"))
        buckets.upload_all(local, data, [path.name for path in local.iterdir()])
        store.proxy.rules = Rules(delay=DELAY, bytes_per_second=BYTES_PER_SECOND)
        sizes = [path.stat().st_size for path in local.glob("*.npy")]
        for number in range(options.rounds):
            for index, (case, place, position) in enumerate(
                (
                    ("bucket", data, None),
                    ("bucket, resumed in the middle", data, Position(window=200)),
                    ("local disk", local, None),
                )
            ):
                steps = options.steps if position is None else options.steps // 10
                cache = root / f"cache-{number}-{index}"
                found[case].append(run(place, cache, steps, position))
                print(case, found[case][-1], file=sys.stderr)
    text = report(found, sizes, options)
    print(text)
    if options.output:
        options.output.write_text(text)


def report(found, sizes: list[int], options: argparse.Namespace) -> str:
    def cell(values: list[float], form: str) -> str:
        middle, low, high = statistics.median(values), min(values), max(values)
        return f"{middle:{form}} ({low:{form}} to {high:{form}})"

    lines = [
        "# Waiting for data in a bucket",
        "",
        f"{datetime.date.today()}, {processor()}, Python {platform.python_version()}",
        f"`python -m benchmarks.bucket_data --steps {options.steps} --rounds {options.rounds}`",
        "",
        f"Simulated: {DELAY * 1000:.0f} ms a request, {BYTES_PER_SECOND / 1e6:.0f} MB/s in all. "
        f"{SHARDS} shards, {sum(sizes) / 1e6:,.0f} MB; {TOGETHER} are shuffled together; a step of "
        f"{SLOTS:,} slots takes {STEP_SECONDS} s. Medians of {options.rounds} rounds, and the "
        "range:",
        "",
        "| data | first batch after, s | share of a step that is waited for data |",
        "| --- | --- | --- |",
    ]
    for case, pairs in found.items():
        firsts, shares = zip(*pairs, strict=True)
        lines.append(f"| {case} | {cell(firsts, '.2f')} | {cell(shares, '.2%')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
