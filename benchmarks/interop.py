"""MosaicBERT-Base at full size into JAX, out to PyTorch, and its speed there.

    python -m benchmarks.interop [--rounds 7] [--output benchmarks/results/interop.md]

A checkpoint of the published layout (pytorch_model.bin, model_type bert, vocabulary 30,528) with
random weights is compared with the original's list of names and shapes, read, converted to a
workdir and from there to a Hugging Face folder, and loaded by transformers. Then the forward pass
of 8 x 128 tokens, 60% of them real, in PyTorch: with padding removed around all but attention, as
the exported model does it, and with padding computed, as it does when it is traced. The two take
turns.
"""

import argparse
import datetime
import json
import pathlib
import platform
import resource
import statistics
import tempfile
import time
from unittest import mock

import jax
import numpy as np

from benchmarks.preparation import processor
from mosaicbert_jax import BertConfig, BertForMaskedLM
from mosaicbert_jax.conversion import export_run, import_folder
from mosaicbert_jax.text.tokenizer_training import train_tokenizer
from tests.golden_cases import FOLDER
from tests.interop.model_cases import call, random_model
from tests.interop.published_layout import write_published
from tests.interop.torch_cases import EMPTY_REPORT, batch, ids, load, torch, transformers

ROWS, LENGTH, REAL_SHARE = 8, 128, 0.6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows, (model, loaded) = there_and_back(pathlib.Path(name))
    rows.append(
        ("largest difference of logits, JAX and PyTorch", f"{difference(model, loaded):.1e}")
    )
    removed, computed = forward_seconds(loaded, arguments.rounds)
    ratio = statistics.median(b / a for a, b in zip(removed, computed, strict=True))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows += [
        ("largest difference of logits, JAX and PyTorch", f"{gap:.1e}"),
        ("PyTorch, forward, padding removed", described(removed)),
        ("PyTorch, forward, padding computed", described(computed)),
        ("computed / removed, median of the pairs", f"{ratio:.2f}"),
        ("most memory at any time", f"{memory:.1f} GiB"),
    ]
    table = "\n".join(f"| {label} | {value} |" for label, value in rows)
    text = (
        "# MosaicBERT-Base to PyTorch and back, random weights, float32\n\n"
        f"{datetime.date.today()}, {processor()}, 1 thread in PyTorch, Python "
        f"{platform.python_version()}, jax {jax.__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}\n`python -m benchmarks.interop`\n\n"
        f"| | |\n| --- | --- |\n{table}\n"
    )
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


def there_and_back(place: pathlib.Path) -> tuple[list[tuple[str, str]], tuple]:
    """Rows of the table; and the model here and in PyTorch."""
    facts = json.loads((FOLDER / "mosaic_base_mlm.json").read_text())
    # The weights as they are drawn for training, so that logits have the size of real ones.
    drawn = random_model(BertForMaskedLM, BertConfig.mosaicbert_base(), scale=0.02)
    write_published(place / "published", drawn, vocab_size=30_528)
    del drawn
    stored = torch.load(place / "published" / "pytorch_model.bin", weights_only=True)
    assert {name: list(x.shape) for name, x in stored.items()} == facts["state_dict"]
    words = [f"word{index}" for index in range(2000)]
    train_tokenizer([" ".join(words)], 512).save(str(place / "tokenizer.json"))
    rows = [("tensors, as the original's list has them", str(len(stored)))]

    def timed(label, function, *inputs, **options):
        start = time.monotonic()
        result = function(*inputs, **options)
        rows.append((label, f"{time.monotonic() - start:.1f} s"))
        return result

    model = timed("from_pretrained", BertForMaskedLM.from_pretrained, place / "published")
    timed(
        "convert to a workdir", import_folder, place / "published", place / "workdir",
        tokenizer=place / "tokenizer.json",
    )  # fmt: skip
    timed("convert to a Hugging Face folder", export_run, place / "workdir", place / "exported")
    loaded, report = timed(
        "AutoModelForMaskedLM.from_pretrained", load, "AutoModelForMaskedLM", place / "exported"
    )
    assert report == EMPTY_REPORT
    found = loaded.state_dict()
    assert found.keys() == stored.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in stored.items())
    rows.append(("all weights, after both conversions", "the same bits"))
    return rows, (model, loaded)


def real_batch(rng: np.random.Generator):
    lengths = rng.integers(LENGTH // 5, LENGTH + 1, ROWS)
    lengths[-1] = LENGTH
    lengths = np.maximum(1, lengths * REAL_SHARE * ROWS * LENGTH // lengths.sum()).astype(int)
    return batch(rng, lengths, row_length=LENGTH, side="right", vocab_size=30_000)


def difference(model, loaded) -> float:
    inputs = real_batch(np.random.default_rng(0))
    with torch.no_grad():
        there_BLV = loaded(*map(ids, inputs)).logits.numpy()
    here_BLV = np.asarray(call(model, *inputs))
    return float(np.abs(there_BLV - here_BLV)[inputs[1] > 0].max())


def forward_seconds(loaded, rounds: int) -> tuple[list[float], list[float]]:
    inputs = [ids(array) for array in real_batch(np.random.default_rng(0))]

    def seconds() -> float:
        start = time.monotonic()
        with torch.no_grad():
            loaded.bert(*inputs)
        return time.monotonic() - start

    removed, computed = [], []
    for _ in range(rounds + 1):
        removed.append(seconds())
        with mock.patch("torch.compiler.is_compiling", return_value=True):
            computed.append(seconds())
    return removed[1:], computed[1:]  # the first ones warm up


def described(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})"


if __name__ == "__main__":
    main()
