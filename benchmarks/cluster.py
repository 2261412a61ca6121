"""`prepare --cluster` on 1 and 2 nodes of one core each, beside `prepare` with 1 and 2 workers.

    python benchmarks/cluster.py [--megabytes 160] [--rounds 5]

The nodes are Ray's own test cluster on 127.0.0.1, each held to a core of its own with all that it
starts; the head, which takes no tasks, and the process that runs `prepare` are on the last one too.
The text is paragraphs of the embedded corpus in random order, in eight .jsonl.gz files; the
tokenizer is given. A time is that of a whole command. The four ways take turns. Last, the memory of
the process that runs `prepare`, on few and on many short documents.
"""

import argparse
import contextlib
import gzip
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ray.cluster_utils import Cluster

from benchmarks.preparation import C4_DOCUMENTS, paragraphs, processor

FILES = 8
BLOCK = 2**20
C4_TEXT = 806e9  # of its 364.9 million documents, 2,210 characters each: 305 GB compressed
SHORT = (2_000_000, 5_000_000)  # documents, for the memory
CORES = sorted(os.sched_getaffinity(0))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if len(CORES) < 2:
        sys.exit("two cores are needed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_files(folder / "in", arguments.megabytes * 10**6)
        tokenizer = train(folder)
        ways = {
            "1 worker": lambda: prepare(folder, tokenizer, ["--workers=1"], CORES[:1]),
            "1 node": lambda: on_nodes(1, folder, tokenizer),
            "2 workers": lambda: prepare(folder, tokenizer, ["--workers=2"], CORES[:2]),
            "2 nodes": lambda: on_nodes(2, folder, tokenizer),
        }
        found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, run in ways.items():
                found[name].append(run())
                print(f"{name}: {found[name][-1][0]:.1f} s", flush=True)
        shutil.copytree(folder / "in", folder / "little", ignore=lambda _, names: sorted(names)[1:])
        little = [on_nodes(1, folder, tokenizer, "little") for _ in range(arguments.rounds)]
        report(found, size, statistics.median(run[1] for run in little))
        measure_memory(folder, tokenizer)
    print(
        f"Python {platform.python_version()}, ray {version('ray')}, tokenizers "
        f"{version('tokenizers')}; {processor()}"
    )


def write_files(folder: Path, size: int) -> int:
    """JSON Lines of documents of 1 to 20 paragraphs; returns the bytes of their text."""
    folder.mkdir()
    texts = paragraphs()
    random = np.random.default_rng(0)
    written = 0
    for number in range(FILES):
        until = size * (number + 1) // FILES
        with gzip.open(folder / f"{number}.jsonl.gz", "wt", compresslevel=6) as file:
            while written < until:
                chosen = random.integers(len(texts), size=random.integers(1, 20))
                text = "\n".join(texts[i] for i in chosen)
                file.write(json.dumps({"text": text}) + "\n")
                written += len(text.encode())
    return written


def train(folder: Path) -> Path:
    command = [sys.executable, "-m", "mosaicbert_jax", "prepare", "--input", "embedded"]
    subprocess.run(
        [*command, "--output", folder / "tokenizer", "--vocab-size=16384"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return folder / "tokenizer" / "tokenizer.json"


def prepare(
    folder: Path, tokenizer: Path, more: list[str], cores: list[int], source: str = "in"
) -> tuple[float, float, int]:
    """Seconds of the command, seconds of its process on a core, most bytes of its memory."""
    output = folder / "out"
    command = [sys.executable, "-m", "mosaicbert_jax", "prepare", "--input", folder / source]
    command += ["--output", output, "--tokenizer", tokenizer, "--long-documents=split", *more]
    begun = time.perf_counter()
    with held_to(cores):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit("prepare failed")
    shutil.rmtree(output)
    return seconds, usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss


@contextlib.contextmanager
def held_to(cores: list[int]) -> Iterator[None]:
    """What is started within runs on these cores alone."""
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


def on_nodes(
    count: int, folder: Path, tokenizer: Path, source: str = "in"
) -> tuple[float, float, int]:
    node = {
        "node_ip_address": "127.0.0.1",
        "include_dashboard": False,
        "object_store_memory": 10**9,
    }
    with held_to(CORES[1:2]):
        cluster = Cluster(True, head_node_args={**node, "num_cpus": 0})
    try:
        for number in range(count):
            with held_to([CORES[number]]):
                cluster.add_node(num_cpus=1, **node)
        return prepare(folder, tokenizer, ["--cluster", cluster.address], CORES[1:2], source)
    finally:
        cluster.shutdown()


def report(
    found: dict[str, list[tuple[float, float, int]]], size: int, busy_with_one: float
) -> None:
    """Prints it all; `busy_with_one` is a core's seconds of the process on the first file alone."""
    speeds = {name: [size / run[0] / 1e6 for run in runs] for name, runs in found.items()}
    for name, of_way in speeds.items():
        print(
            f"{name}: {statistics.median(of_way):.2f} MB/s of text "
            f"({min(of_way):.2f} to {max(of_way):.2f})"
        )
    for one, other in (("1 node", "1 worker"), ("2 nodes", "2 workers"), ("2 nodes", "1 node")):
        ratios = [a / b for a, b in zip(speeds[one], speeds[other], strict=True)]
        print(
            f"{one} / {other}, by round: {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )
    busy = statistics.median(run[1] for run in found["1 node"])
    blocks = size / BLOCK * (FILES - 1) / FILES
    a_block = (busy - busy_with_one) / blocks
    a_core = statistics.median(speeds["2 nodes"]) / 2 * 1e6
    most = BLOCK / a_block / a_core
    print(
        f"the process that runs prepare: {busy:.2f} s of a core, {busy_with_one:.2f} s with the "
        f"first of the {FILES} files: {1000 * a_block:.1f} ms a block, so busy all the time with "
        f"{most:,.0f} cores"
    )
    for name, text in (("C4", C4_TEXT), ("1 TB of text", 1e12)):
        for cores in (64, 256):
            hours = text / (a_core * min(cores, most)) / 3600
            print(f"predicted: {name} on {cores} cores, {hours:.1f} h")


def measure_memory(folder: Path, tokenizer: Path) -> None:
    words = [text.split()[:8] for text in paragraphs()]
    memory = []
    for count in SHORT:
        source = f"short-{count}"
        (folder / source).mkdir()
        with (folder / source / "text.jsonl").open("w") as file:
            for i in range(count):
                text = " ".join([*words[i % len(words)], str(i)])
                file.write(json.dumps({"text": text}) + "\n")
        memory.append(on_nodes(2, folder, tokenizer, source)[2])
    a_document = (memory[1] - memory[0]) / (SHORT[1] - SHORT[0])
    print(
        f"memory of the process that runs prepare: {memory[0] / 1e6:,.0f} MB for {SHORT[0]:,} "
        f"documents, {memory[1] / 1e6:,.0f} MB for {SHORT[1]:,}: {a_document:.1f} bytes a document"
        f"\npredicted for C4's {C4_DOCUMENTS:,} documents: "
        f"{16 * C4_DOCUMENTS / 1e9 + memory[0] / 1e9:.1f} GB for moments"
    )


if __name__ == "__main__":
    main()
