"""What each change of MosaicBERT's recipe is worth.

    python -m experiments.recipes --config=experiments/configs/recipes.py \\
        --workdir=runs/recipes --config.data.path=DIR [--output=experiments/results/recipes]

See experiments/configs/recipes.py. Writes OUTPUT.md and OUTPUT.png as it goes.
"""

import functools
import pathlib
import sys

from ml_collections import ConfigDict

from experiments.comparison import (
    Found,
    Job,
    Prepare,
    StepSeconds,
    by_seed,
    heading,
    jobs,
    mean_and_deviation,
    steps_of,
    table_of_changes,
    variant_config,
    write_changes,
)
from experiments.configs.recipes import CHANGES
from mosaicbert_jax.errors import explained
from mosaicbert_jax.pretraining.pretraining import Pretraining
from mosaicbert_jax.storage import workdir
from mosaicbert_jax.training import loop

_TEACHER = "teacher"


def prepare(
    teacher: pathlib.Path, variant: str, config: ConfigDict, folder: pathlib.Path
) -> Pretraining:
    """A run as its config says, with the teacher's folder in place of its name."""
    if config.distill.teacher == _TEACHER:
        config = config.copy_and_resolve_references()
        config.distill.teacher = str(teacher)
    return Pretraining.prepare(config, folder)


def prepared(config: ConfigDict, folder: pathlib.Path) -> Prepare:
    """Trains the teacher, a larger model by the same recipe; the same call resumes."""
    place = (folder / _TEACHER).absolute()
    one = config.teacher.copy_and_resolve_references()
    one.data.path, one.train.duration = config.data.path, f"{config.teacher_steps}ba"
    one.eval.every = one.checkpoint.every = one.train.duration
    with workdir.locked(folder):
        loop.train(Pretraining.prepare(one.lock(), place))
    return functools.partial(prepare, place)


def equal_steps(config: ConfigDict, seconds: StepSeconds) -> list[Job]:
    """The variants whose steps take another time, at the recipe's number of steps."""
    names = list(CHANGES)
    recipe = seconds.seconds[names[0]]
    steps = steps_of(config.budgets[0], recipe)
    others = [name for name in names if abs(seconds.seconds[name] / recipe - 1) > _NOTEWORTHY]
    return [Job(name, steps, seed) for seed in config.seeds for name in others]


_NOTEWORTHY = 0.1  # of the time of a step


def table(config: ConfigDict, found: Found, seconds: StepSeconds, picture: str) -> str:
    """The results, with machine, versions and command."""
    first = jobs(config)[0]
    one = variant_config(config, first)
    lines = [
        *heading("Each change of the recipe alone", "recipes"),
        f"MosaicBERT with {one.model.num_hidden_layers} layers of {one.model.hidden_size} on the "
        f"embedded corpus, rows of {one.data.row_length} and {one.train.batch_tokens:,} slots a "
        f"step, a peak learning rate of {one.optimizer.learning_rate:g} for all, float32. Steps a "
        f"second: with all variants taking turns, data and all ({seconds.machine}; median). Each "
        f"run has its whole schedule in {first.budget} at this speed. Held out: masked at 15% by "
        "token. Mean of the seeds ± standard deviation.",
        "",
        *table_of_changes(CHANGES, first.budget, found, seconds),
        "",
    ]
    same = equal_steps(config, seconds)
    rows = {job.variant: by_seed(found, job.variant, job.budget, "eval_loss") for job in same}
    if any(rows.values()):
        lines += [
            "Those whose steps take another time, at the recipe's number of steps, "
            f"{int(same[0].budget.removesuffix('ba')):,}:",
            "",
            "| change | seeds | held-out loss |",
            "| --- | --- | --- |",
            *(f"| {name} | {len(x)} | {mean_and_deviation(x)} |" for name, x in rows.items() if x),
            "",
        ]
    lines += [
        f"The teacher has 2 layers of 256 and {config.teacher_steps:,} steps of the same recipe, "
        "which no time is counted for.",
        "",
        f"![losses]({picture}.png)",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    with explained("interrupted; the same command resumes"):
        write_changes(
            sys.argv,
            "recipes",
            list(CHANGES),
            more=equal_steps,
            table=table,
            prepared=prepared,
        )


if __name__ == "__main__":
    main()
