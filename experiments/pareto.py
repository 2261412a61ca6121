"""Quality against pretraining time: MosaicBERT and BERT at several budgets, then finetuned.

    python -m experiments.pareto --config=experiments/configs/pareto.py --workdir=runs/pareto \\
        --config.data.path=DIR --config.finetune.data.path=FILE \\
        [--output=experiments/results/pareto]

See experiments/configs/pareto.py. Writes OUTPUT.md, OUTPUT.png and OUTPUT.json as it goes.
"""

import datetime
import functools
import pathlib
import platform
import statistics
import sys
from typing import Any

import jax
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from benchmarks.preparation import processor
from benchmarks.records import dumps
from experiments.comparison import (
    Job,
    StepSeconds,
    by_seed,
    jobs,
    mean_and_range,
    prepare,
    read_command,
    run,
    seconds_of,
    step_seconds,
    variant_config,
)
from mosaicbert_jax.errors import explained
from mosaicbert_jax.finetuning.finetuning import finetune
from mosaicbert_jax.finetuning.suite import run_suite

Found = dict[Job, dict[str, Any]]
LABELS = {"mosaicbert": "MosaicBERT", "bert": "BERT"}


def finetuned(config: ConfigDict, job: Job, folder: pathlib.Path) -> dict[str, Any]:
    """The score of a run's model on labeled texts, with the run's seed; or GLUE's mean.

    The learning rate is that of `finetune_rates` which is best on a part of the training texts.
    """
    one = config.finetune.copy_and_resolve_references()
    one.init_from = str(folder)
    if "tasks" in one:
        return {"finetuned": run_suite(one, folder / "glue")["mean"]}
    one.seed = job.seed
    held_out, one.data.dev_path = one.data.dev_path, None
    # More than the tenth that finetuning holds out by itself: it decides by the texts' digests, and
    # may have made the file of held-out texts that way.
    one.data.dev_fraction = 0.2

    def accuracy(rate: float, name: str) -> float:
        one.optimizer.learning_rate, one.optimizer.weight_decay = rate, rate / 10
        return finetune(ConfigDict(one).lock(), folder / f"{name}-{rate:g}").values["accuracy"]

    chosen = max(config.finetune_rates, key=lambda rate: accuracy(rate, "choosing"))
    one.data.dev_path = held_out
    return {"finetuned": accuracy(chosen, "finetuned"), "finetune_rate": chosen}


def table(config: ConfigDict, found: Found, seconds: StepSeconds, picture: str) -> str:
    """The results, with machine, versions and command."""
    one = variant_config(config, jobs(config)[0])
    lines = [
        "# Quality against pretraining time: MosaicBERT and BERT",
        "",
        f"{datetime.date.today()}, {processor()}, Python {platform.python_version()}, jax "
        f"{jax.__version__}",
        "`python -m experiments.pareto --config=experiments/configs/pareto.py "
        "--workdir=runs/pareto --config.data.path=DIR --config.finetune.data.path=FILE`",
        "",
        f"Both have {one.model.num_hidden_layers} layers of {one.model.hidden_size} with "
        f"{one.model.num_attention_heads} heads, the same text, tokenizer, optimizer and schedule, "
        f"and {one.train.batch_tokens:,} slots a step. MosaicBERT packs its sequences and masks "
        "30%; BERT has learned positions, GELU, dropout in attention, 15% masking, and a "
        "sequence a row with its padding. Time is steps times the step's time, data and all, "
        "which was measured with both taking turns "
        f"({seconds.machine}; median): "
        + ", ".join(
            f"{label} {1000 * seconds.seconds[name]:.1f} ms" for name, label in LABELS.items()
        )
        + ". Each budget is a run of its own with the whole schedule. Held out: masked at 15%. "
        "Finetuned: accuracy on held-out labeled texts (GLUE's mean at the true sizes), with the "
        f"learning rate of {', '.join(f'{rate:g}' for rate in config.finetune_rates)} that is "
        "best, for each run, on a part of the training texts. Mean of the seeds (lowest to "
        "highest).",
        "",
        "| model | time | seeds | steps | held-out loss | held-out masked accuracy | finetuned |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for variant in LABELS:
        for budget in config.budgets:
            of = functools.partial(by_seed, found, variant, budget)
            steps = of("steps")
            if steps:
                lines.append(
                    f"| {LABELS[variant]} | {budget} | {len(steps)} | {steps[0]:,} | "
                    f"{mean_and_range(of('eval_loss'))} | "
                    f"{mean_and_range(of('eval_masked_accuracy'))} | "
                    f"{mean_and_range(of('finetuned'))} |"
                )
    return "\n".join([*lines, "", f"![quality against time]({picture}.png)"]) + "\n"


def curves(config: ConfigDict, found: Found) -> list[dict[str, Any]]:
    """A record for each model and budget: seconds, and the results of each seed."""
    keys = ("steps", "eval_loss", "eval_masked_accuracy", "eval_commonest_accuracy", "finetuned")
    return [
        {
            "model": LABELS[variant],
            "seconds": seconds_of(budget),
            **{key: by_seed(found, variant, budget, key) for key in keys},
        }
        for variant in LABELS
        for budget in config.budgets
        if by_seed(found, variant, budget, "steps")
    ]


def draw(records: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Masked accuracy and finetuned score over time; bars from the lowest to the highest seed."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for axis, key, name in zip(
        figure.subplots(1, 2),
        ("eval_masked_accuracy", "finetuned"),
        ("held-out masked accuracy", "score after finetuning"),
        strict=True,
    ):
        for color, model in enumerate(LABELS.values()):
            here = [record for record in records if record["model"] == model and record[key]]
            means = [statistics.fmean(record[key]) for record in here]
            spread = [
                [mean - min(record[key]) for mean, record in zip(means, here, strict=True)],
                [max(record[key]) - mean for mean, record in zip(means, here, strict=True)],
            ]
            times = [record["seconds"] for record in here]
            axis.errorbar(
                times, means, spread, marker="o", capsize=4, label=model, color=f"C{color}"
            )
        if key == "eval_masked_accuracy":
            baseline = [value for record in records for value in record["eval_commonest_accuracy"]]
            if baseline:
                label = "always the commonest token"
                axis.axhline(statistics.fmean(baseline), color="gray", linestyle=":", label=label)
        ticks = sorted({record["seconds"] for record in records})
        axis.set(xlabel="seconds of pretraining", ylabel=name, xscale="log")
        axis.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    with explained("interrupted; the same command resumes"):
        config, folder, target = read_command(sys.argv, "experiments/results/pareto")
        seconds = step_seconds(config, folder, prepare)
        jax.config.update("jax_compilation_cache_dir", str((folder / "compiled").absolute()))
        after = functools.partial(finetuned, config)
        for found in run(jobs(config), config, folder, seconds, after=after):
            records = curves(config, found)
            if records:
                target.with_suffix(".json").write_text(dumps(records))
                target.with_suffix(".md").write_text(table(config, found, seconds, target.name))
                draw(records, target.with_suffix(".png"))
        print(target.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
