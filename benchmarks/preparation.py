"""Preparing 2 GB of text: memory, speed beside the bare `tokenizers` library, and C4's time.

    python benchmarks/preparation.py [--gigabytes 2] [--pairs 5] [--tokenizer-model bpe]

The text is made of the paragraphs of the embedded corpus in random order, so that documents are
uneven and hardly one repeats. Memory is measured on the whole, tokenizer training included: the
resident memory of all processes together, sampled ten times a second. Speed is measured in pairs
on 60 MB: the library's `encode_batch_fast` on texts that are in memory, on all cores, then
`prepare` from file to data set with that tokenizer. Last, files that are like C4's (JSON Lines with
three keys, compressed, documents of about 2,200 characters), cut at 128 tokens as the recipe does.
"""

import argparse
import gzip
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from mosaicbert_jax.data.dataset import DatasetMetadata
from mosaicbert_jax.parallel import available_cores
from mosaicbert_jax.text.readers import Document, blocks, documents
from mosaicbert_jax.text.sources import find_sources
from mosaicbert_jax.text.streams import Tally

PAIR_BYTES = 60_000_000
C4_DOCUMENTS = 364_868_892  # as published: its 1,024 training files
C4_FILES = 4
C4_FILE_TEXT = 60_000_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokenizer-model", default="wordpiece", choices=["wordpiece", "bpe"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, part = folder / "whole.jsonl", folder / "part.jsonl"
        write_text(whole, int(arguments.gigabytes * 1e9))
        write_text(part, PAIR_BYTES, seed=1)
        print(f"wrote {whole.stat().st_size / 1e9:.2f} GB of JSON Lines", flush=True)
        model = arguments.tokenizer_model
        memory, seconds = measure_memory(whole, folder / "whole", model)
        trained = DatasetMetadata.load(folder / "whole")
        report(trained, whole.stat().st_size, memory, seconds)
        ratios, bare, ours = compare(part, trained.tokenizer_path, folder, arguments.pairs)
        measure_c4(folder, trained.tokenizer_path, arguments.pairs)
    print(
        f"bare library, {available_cores()} cores: {statistics.median(bare):,.0f} tokens/s "
        f"({min(bare):,.0f} to {max(bare):,.0f})\n"
        f"prepare, {available_cores()} workers: {statistics.median(ours):,.0f} tokens/s "
        f"({min(ours):,.0f} to {max(ours):,.0f})\n"
        f"prepare / bare library, median of {len(ratios)} pairs: "
        f"{statistics.median(ratios):.1%} ({min(ratios):.1%} to {max(ratios):.1%})\n"
        f"Python {platform.python_version()}, tokenizers {version('tokenizers')}; {processor()}"
    )


def paragraphs() -> list[str]:
    """All paragraphs of the embedded corpus."""
    found = []
    for source in find_sources(["embedded"]):
        for file in source.files:
            for block in blocks(file, "text", Tally()):
                texts = [d.text for d in documents(block, "text") if isinstance(d, Document)]
                found += [part for text in texts for part in text.split("\n") if part.strip()]
    return found


def write_text(path: Path, size: int, seed: int = 0) -> None:
    """JSON Lines of documents of 1 to 20 paragraphs in random order."""
    texts = paragraphs()
    random = np.random.default_rng(seed)
    with path.open("w") as file:
        while file.tell() < size:
            order = random.permutation(len(texts))
            cuts = np.cumsum(random.integers(1, 20, len(order)))
            for chosen in np.split(order, cuts[cuts < len(order)]):
                text = "\n".join(texts[i] for i in chosen)
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def prepare(path: Path, output: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "mosaicbert_jax", "prepare", "--input", path, "--output"]
    return subprocess.Popen([*command, output, *more], stdout=subprocess.DEVNULL)


def measure_memory(path: Path, output: Path, model: str) -> tuple[int, float]:
    """The most bytes that all processes of one preparation had at a time, and its seconds."""
    begun = time.perf_counter()
    process = prepare(path, output, "--long-documents", "split", "--tokenizer-model", model)
    most = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.1):
            most = max(most, sum(map(resident_bytes, family(process.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    done.set()
    watcher.join()
    if status:
        sys.exit(status)
    return most, time.perf_counter() - begun


def family(process: int) -> list[int]:
    """A process and all that it started."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except FileNotFoundError:  # it has ended
        return []
    return [process, *(member for child in children for member in family(int(child)))]


def resident_bytes(process: int) -> int:
    """What it holds of the machine's memory, pages shared with others counted in each."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def report(metadata: DatasetMetadata, size: int, memory: int, seconds: float) -> None:
    tokens = sum(split.tokens for split in metadata.splits.values())
    documents_read = sum(source.documents for source in metadata.sources)
    print(
        f"prepare, {size / 1e9:.2f} GB, {documents_read:,} documents, {tokens:,} tokens: "
        f"{seconds:,.0f} s with the training of {metadata.vocab_size:,} entries; "
        f"most resident memory {memory / 1e6:,.0f} MB",
        flush=True,
    )


def compare(
    path: Path, tokenizer_path: Path, folder: Path, pairs: int
) -> tuple[list[float], list[float], list[float]]:
    """Tokens a second of the bare library and of `prepare` in turn, and their ratios."""
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    with path.open() as file:
        texts = [json.loads(line)["text"] for line in file]
    bare, ours = [], []
    for _ in range(pairs):
        begun = time.perf_counter()
        tokens = 0
        for start in range(0, len(texts), 1000):  # all at once would take gigabytes
            batch = texts[start : start + 1000]
            encoded = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            tokens += sum(len(encoding) for encoding in encoded)
        bare.append(tokens / (time.perf_counter() - begun))
        output = folder / "part"
        given = ["--tokenizer", tokenizer_path]
        begun = time.perf_counter()
        if prepare(path, output, "--long-documents", "split", *given).wait():
            sys.exit("prepare failed")
        ours.append(tokens / (time.perf_counter() - begun))
        shutil.rmtree(output)
        print(f"bare {bare[-1]:,.0f}, prepare {ours[-1]:,.0f} tokens/s", flush=True)
    ratios = [ours_one / bare_one for ours_one, bare_one in zip(ours, bare, strict=True)]
    return ratios, bare, ours


def write_c4(folder: Path) -> None:
    """Files with C4's keys; documents of log-normal length, 2,200 characters on average."""
    texts = paragraphs()
    random = np.random.default_rng(2)
    for number in range(C4_FILES):
        name = f"c4-train.{number:05d}-of-01024.json.gz"
        with gzip.open(folder / name, "wt", compresslevel=6) as file:
            written = 0
            while written < C4_FILE_TEXT:
                length = int(random.lognormal(7.2, 1.0))
                text = ""
                while len(text) < length:
                    text += texts[random.integers(len(texts))][: length - len(text)] + "\n"
                record = {"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": f"u/{written}"}
                file.write(json.dumps(record) + "\n")
                written += len(text)


def measure_c4(folder: Path, tokenizer_path: Path, repeats: int) -> None:
    """The time of files like C4's, and what that makes for all of it."""
    files = folder / "c4"
    files.mkdir()
    write_c4(files)
    seconds, reading = [], []
    for _ in range(repeats):
        output = folder / "like-c4"
        begun = time.perf_counter()
        more = [
            "--tokenizer",
            tokenizer_path,
            "--keep-duplicates",
            "--validation-fraction",
            "0.001",
        ]
        if prepare(files, output, "--long-documents", "truncate", *more).wait():
            sys.exit("prepare failed")
        seconds.append(time.perf_counter() - begun)
        metadata = DatasetMetadata.load(output)
        shutil.rmtree(output)
        begun = time.perf_counter()
        for file in find_sources([files])[0].files:
            for _ in blocks(file, "text", Tally()):
                pass
        reading.append(time.perf_counter() - begun)
    documents_read = metadata.sources[0].documents
    speed = documents_read / statistics.median(seconds)
    bound = documents_read / statistics.median(reading)
    print(
        f"like C4: {documents_read:,} documents in {statistics.median(seconds):.1f} s "
        f"({min(seconds):.1f} to {max(seconds):.1f}), {speed:,.0f} a second on "
        f"{available_cores()} cores; reading alone, in one process: {bound:,.0f} a second\n"
        f"extrapolated to C4's {C4_DOCUMENTS:,}: {C4_DOCUMENTS / speed / 3600:,.1f} h, and with "
        f"any number of cores not below {C4_DOCUMENTS / bound / 3600:,.1f} h"
    )


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{available_cores()} cores of {line.partition(': ')[2]}"
    return platform.processor()


if __name__ == "__main__":
    main()
