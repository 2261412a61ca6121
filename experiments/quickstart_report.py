"""Draws a run's loss and accuracy from its metrics.jsonl, and writes its figures as a table.

    python -m experiments.quickstart_report runs/quickstart \\
        [--output experiments/results/quickstart]

Writes OUTPUT.png and OUTPUT.md.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def read(workdir: pathlib.Path) -> tuple[list[dict], list[dict]]:
    """Training rows and evaluation rows."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [r for r in rows if "loss" in r], [r for r in rows if "eval_loss" in r]


def smooth(values: list[float], share: float = 0.1) -> list[float]:
    """An exponential mean, as steps of a small batch scatter."""
    mean, means = values[0], []
    for value in values:
        mean += share * (value - mean)
        means.append(mean)
    return means


def draw(training: list[dict], evaluations: list[dict], path: pathlib.Path) -> None:
    """Loss on the left, accuracy on the right, over minutes of training."""
    minutes = [r["seconds"] / 60 for r in training]
    # An evaluation stands at the last training row at or before its step.
    marks = [
        max(r["seconds"] for r in training if r["step"] <= evaluation["step"]) / 60
        for evaluation in evaluations
    ]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, name, held_out in (
        (left, "loss", "eval_loss"),
        (right, "masked_accuracy", "eval_masked_accuracy"),
    ):
        axis.plot(minutes, smooth([r[name] for r in training]), label="training, 30% masked")
        axis.plot(marks, [r[held_out] for r in evaluations], "o-", label="held out, 15% masked")
        axis.set(xlabel="minutes", ylabel=name.replace("_", " "))
        axis.spines[["top", "right"]].set_visible(False)
    right.axhline(
        evaluations[-1]["eval_commonest_accuracy"],
        color="gray",
        linestyle=":",
        label="always the commonest token",
    )
    left.legend(frameon=False)
    right.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 0.22))
    figure.savefig(path, dpi=110)


def table(workdir: pathlib.Path, training: list[dict], evaluations: list[dict]) -> str:
    """The run's figures, with machine and versions."""
    cpu = next(
        line.split(":")[1].strip()
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    last, evaluation = training[-1], evaluations[-1]
    speed = statistics.median(r["tokens_per_second"] for r in training)
    return f"""# `make quickstart`

{datetime.date.today()}, {os.cpu_count()} cores of {cpu}, Python {platform.python_version()}, jax \
{jax.__version__}

| | |
| --- | --- |
| training | {last["seconds"]:.0f} s, {last["step"]:,} steps, {last["tokens"]:,} tokens |
| median speed | {speed:,.0f} real tokens/s |
| held-out loss | {evaluation["eval_loss"]:.3f} |
| held-out masked accuracy, 15% masked | {evaluation["eval_masked_accuracy"]:.3f} over \
{evaluation["eval_predictions"]:,} predictions |
| always guessing the commonest token | {evaluation["eval_commonest_accuracy"]:.3f} |

![loss and accuracy]({workdir.name}.png)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("experiments/results/quickstart")
    )
    arguments = parser.parse_args()
    training, evaluations = read(arguments.workdir)
    draw(training, evaluations, arguments.output.with_suffix(".png"))
    text = table(arguments.output, training, evaluations)
    arguments.output.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
