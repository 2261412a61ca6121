"""The table and the picture of benchmarks/finetuning.py."""

import datetime
import json
import pathlib
import platform
import statistics
from collections.abc import Sequence

import jax
import matplotlib
import torch
import transformers

from benchmarks.finetuning import BATCH, GRID, LENGTH, MINILM_LEARNING_RATE, SEEDS, Found
from benchmarks.preparation import processor
from mosaicbert_jax.training import checkpoints, workdir

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def report(found: Sequence[Found], pretrained: pathlib.Path, picture: str) -> str:
    """The scores, with machine, versions and command.

    Args:
      pretrained: the run that the starts come from.
      picture: its name, without the ending.
    """
    rows = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "eval_loss" in row][-1]
    model = workdir.read(pretrained)["model"]
    lines = [
        "# Finetuning: what pretraining is worth, and the same from PyTorch",
        "",
        f"{datetime.date.today()}, {processor()}, shared with other work, Python "
        f"{platform.python_version()}, jax {jax.__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        "`python -m benchmarks.finetuning --pretrained runs/quickstart --ratings FILE --work DIR`",
        "",
        f"MosaicBERT of {model['num_hidden_layers']} layers of {model['hidden_size']}, vocabulary "
        f"{model['vocab_size']:,}, pretrained on "
        f"{checkpoints.restore_progress(pretrained).tokens:,} tokens of the embedded corpus "
        f"(held-out masked accuracy {last['eval_masked_accuracy']:.3f}), and with random weights; "
        "MiniLM (6 layers of 384, all-MiniLM-L6-v2) through the BERT baseline and in PyTorch. "
        f"Batches of {BATCH}, at most {LENGTH} tokens a text, seeds "
        f"{', '.join(map(str, SEEDS))}; else the recipe of configs/finetune.py, weight decay a "
        "tenth of the learning rate. MosaicBERT's learning rate is the best of "
        f"{', '.join(f'{rate:g}' for rate in GRID)}, for each start of its own, on a tenth taken "
        f"from the examples to train on (one seed); MiniLM's is {MINILM_LEARNING_RATE:g} on both "
        "sides.",
        "",
        "| task | trained on | held out | start | epochs | learning rate | score | mean | lowest | "
        "highest | loss, mean |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_row(one, metric) for one in found for metric in one.setting.task.metrics),
        "",
        f"![held-out scores of each start]({picture}.png)",
    ]
    return "\n".join(lines) + "\n"


def _row(one: Found, metric: str) -> str:
    values, (train, dev) = one.values(metric), one.examples
    return (
        f"| {one.setting.task.title} | {train:,} | {dev:,} | {one.start} | {one.epochs} | "
        f"{one.learning_rate:g} | {metric} | {statistics.fmean(values):.4f} | {min(values):.4f} | "
        f"{max(values):.4f} | {statistics.fmean(one.values('loss')):.4f} |"
    )


def draw(found: Sequence[Found], path: pathlib.Path) -> None:
    """A panel for each task and size: a dot for each seed, a line at the mean."""
    settings = list(dict.fromkeys(one.setting for one in found))
    columns = -(-len(settings) // 2)
    figure, axes = plt.subplots(2, columns, figsize=(3.7 * columns, 6.4), layout="constrained")
    starts = list(dict.fromkeys(one.start for one in found))
    for setting, axis in zip(settings, axes.flat, strict=False):
        here = [one for one in found if one.setting == setting]
        metric = setting.task.metrics[0]
        for place, one in enumerate(here):
            values, color = one.values(metric), f"C{starts.index(one.start)}"
            spread = [place + 0.1 * (number - 1) for number in range(len(values))]
            axis.plot(spread, values, "o", color=color, markersize=6, alpha=0.8)
            mean = statistics.fmean(values)
            axis.hlines(mean, place - 0.3, place + 0.3, color=color, linewidth=2)
            axis.annotate(
                f"{mean:.3f}", (place, max(values)), (0, 7), textcoords="offset points", ha="center"
            )
        axis.set_title(f"{setting.task.title}, {here[0].examples[0]:,} labels", fontsize=10)
        axis.set_ylabel(f"held-out {metric}")
        labels = [one.start.replace(", ", ",\n").replace(" in ", "\nin ") for one in here]
        axis.set_xticks(range(len(here)), labels, fontsize=8)
        axis.set_xlim(-0.6, len(here) - 0.4)
        axis.margins(y=0.2)
        axis.grid(axis="y", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(settings) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=110)
