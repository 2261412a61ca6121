"""`prepare --cluster` on 1 and 2 nodes of one core each, beside `prepare` with 1 and 2 workers.

    python benchmarks/cluster.py [--megabytes 320] [--rounds 4]

The nodes are Ray's own test cluster on 127.0.0.1, each held to a core of its own with all that it
starts; the head, which takes no tasks, and the process that runs `prepare` are on the last one too.
The text is paragraphs of the embedded corpus in random order, in eight .jsonl.gz files; the
tokenizer is given. Each way is timed on all files and on the first one alone, as a whole command:
the difference is the speed once all has begun. The ways take turns. Last, the memory of the process
that runs `prepare`, on few and on many short documents.
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
SHORT = (4_000_000, 8_000_000)  # documents, for the memory
CORES = sorted(os.sched_getaffinity(0))

# Seconds of a command, seconds of a core in its process, most bytes of the process's memory.
Run = tuple[float, float, int]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    if len(CORES) < 2:
        sys.exit("two cores are needed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_files(folder / "in", arguments.megabytes * 10**6)
        (folder / "first").mkdir()
        shutil.copy(folder / "in" / "0.jsonl.gz", folder / "first")
        tokenizer = train(folder)
        rounds: list[dict[str, tuple[Run, Run]]] = []
        for _ in range(arguments.rounds):
            rounds.append({})
            for name in ("1 worker", "1 node", "2 workers", "2 nodes"):
                run = on_nodes if "node" in name else with_workers
                first, whole = (
                    run(int(name[0]), folder, source, tokenizer) for source in ("first", "in")
                )
                rounds[-1][name] = first, whole
                print(f"{name}: {first[0]:.1f} and {whole[0]:.1f} s", flush=True)
        report(rounds, size)
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


def prepare(folder: Path, source: str, tokenizer: Path, more: list[str], cores: list[int]) -> Run:
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


def with_workers(count: int, folder: Path, source: str, tokenizer: Path) -> Run:
    return prepare(folder, source, tokenizer, [f"--workers={count}"], CORES[:count])


@contextlib.contextmanager
def held_to(cores: list[int]) -> Iterator[None]:
    """What is started within runs on these cores alone."""
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


def on_nodes(count: int, folder: Path, source: str, tokenizer: Path) -> Run:
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
        return prepare(folder, source, tokenizer, ["--cluster", cluster.address], CORES[1:2])
    finally:
        cluster.shutdown()


def report(rounds: list[dict[str, tuple[Run, Run]]], size: int) -> None:
    rest = size * (FILES - 1) / FILES
    speeds: dict[str, list[float]] = {}
    for name in rounds[0]:
        pairs = [of_round[name] for of_round in rounds]
        speeds[name] = [rest / (whole[0] - first[0]) / 1e6 for first, whole in pairs]
        print(
            f"{name}: {spread([whole[0] for _, whole in pairs], 1)} s for {size / 1e6:,.0f} MB of "
            f"text, {spread([first[0] for first, _ in pairs], 1)} s for an eighth of it; once "
            f"begun, {spread(speeds[name], 2)} MB/s"
        )
    for one, other in (
        ("2 workers", "1 worker"), ("2 nodes", "1 node"),
        ("1 node", "1 worker"), ("2 nodes", "2 workers"),
    ):  # fmt: skip
        ratios = [a / b for a, b in zip(speeds[one], speeds[other], strict=True)]
        print(f"{one} / {other}, by round: {spread(ratios, 2)}")
    busy = [
        (whole[1] - first[1]) / (rest / BLOCK) for first, whole in (r["1 node"] for r in rounds)
    ]
    a_core = statistics.median(speeds["2 nodes"]) / 2 * 1e6
    most = BLOCK / statistics.median(busy)
    print(
        f"the process that runs prepare: {spread([1000 * each for each in busy], 2)} ms of a core "
        f"a block of 1 MiB, so at most {most / 1e6:,.0f} MB/s, as of {most / a_core:,.0f} cores"
    )
    for name, text in (("C4", C4_TEXT), ("1 TB of text", 1e12)):
        for cores in (16, 64):
            hours = text / min(a_core * cores, most) / 3600
            print(f"predicted: {name} on {cores} cores, {hours:.1f} h")


def spread(values: list[float], digits: int) -> str:
    """Median (lowest to highest)."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


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
        memory.append(on_nodes(2, folder, source, tokenizer)[2])
    a_document = (memory[1] - memory[0]) / (SHORT[1] - SHORT[0])
    print(
        f"memory of the process that runs prepare: {memory[0] / 1e6:,.0f} MB for {SHORT[0]:,} "
        f"documents, {memory[1] / 1e6:,.0f} MB for {SHORT[1]:,}: {a_document:.1f} bytes a document"
        f"\npredicted for C4's {C4_DOCUMENTS:,} documents: "
        f"{(a_document * C4_DOCUMENTS + memory[0]) / 1e9:.1f} GB at most"
    )


if __name__ == "__main__":
    main()
