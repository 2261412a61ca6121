"""The main job: text in, a tokenizer and 45 s of training, fill-mask, and the wait for data."""

import json
import pathlib
import subprocess
import sys
import tempfile

from benchmarks.gpu.tables import header, row

_SENTENCE = "The congress of the united [MASK] has passed the law."
_GPU = (
    "model.num_hidden_layers=6",
    "model.hidden_size=512",
    "model.num_attention_heads=8",
    "model.intermediate_size=2048",
    "train.batch_tokens=32768",
    "train.microbatch_tokens=32768",
    "data.row_length=512",
    "optimizer.learning_rate=1e-3",
    "train.duration=45s",
)
_CPU = (
    "model.num_hidden_layers=1",
    "model.hidden_size=64",
    "model.num_attention_heads=2",
    "model.intermediate_size=64",
    "train.duration=5ba",
    "eval.every=5ba",
    "eval.max_tokens=2000",
    "log.every=1",
)


def main(rehearse: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _train(pathlib.Path(folder), rehearse)


def _train(folder: pathlib.Path, rehearse: bool) -> None:
    data, run = folder / "data", folder / "run"
    source = "embedded"
    if rehearse:
        (folder / "text.txt").write_text(_text())
        source = str(folder / "text.txt")
    prepare = ("prepare", "--input", source, "--output", str(data))
    vocabulary = "200" if rehearse else "4096"
    _say("-m", "mosaicbert_jax", *prepare, "--vocab-size", vocabulary, "--long-documents", "split")
    overrides = [f"--config.{setting}" for setting in (_CPU if rehearse else _GPU)]
    command = ("train.py", "--config=configs/quickstart.py:mosaicbert", f"--workdir={run}")
    _say(*command, f"--config.data.path={data}", *overrides)
    _say("-m", "mosaicbert_jax", "fill-mask", str(run), "--top", "3", _SENTENCE)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [record for record in map(json.loads, lines) if "tokens_per_second" in record]
    header("step", "real tokens/s", "MFU", "share of time waiting for data", "masked accuracy")
    for record in rows[-5:]:
        row(
            record["step"],
            f"{record['tokens_per_second']:,.0f}",
            f"{100 * record['mfu']:.1f}%",
            f"{100 * record['data_wait_fraction']:.1f}%",
            f"{record['masked_accuracy']:.3f}",
        )


def _text() -> str:
    words = ("the", "law", "of", "union", "is", "what", "people", "united", "states", "made")
    lines = (" ".join(words[(i + 3 * j) % len(words)] for j in range(12)) for i in range(300))
    return "\n".join(f"{line} {i}." for i, line in enumerate(lines))


def _say(*command: str) -> None:
    """Runs it and prints the end of what it printed; an exit status above 0 is a failure."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    print("```\n" + done.stdout[-1200:].strip() + "\n```", flush=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [""])[-1]
        print(f"FAILED: {' '.join(command[:3])}: {said}", flush=True)
        sys.exit(1)
