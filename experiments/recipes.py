"""What each change of MosaicBERT's recipe is worth.

    python -m experiments.recipes --config=experiments/configs/recipes.py \\
        --workdir=runs/recipes --config.data.path=DIR [--output=experiments/results/recipes]

See experiments/configs/recipes.py. Writes OUTPUT.md and OUTPUT.png as it goes.
"""

import datetime
import functools
import pathlib
import platform
import sys

import jax
from ml_collections import ConfigDict

from benchmarks.preparation import processor
from experiments.comparison import (
    Found,
    Job,
    StepSeconds,
    by_seed,
    draw_changes,
    jobs,
    mean_and_deviation,
    read_command,
    run,
    step_seconds,
    steps_of,
    table_of_changes,
    variant_config,
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


def train_teacher(config: ConfigDict, folder: pathlib.Path) -> None:
    """A larger model with the same recipe; the same call resumes."""
    one = config.teacher.copy_and_resolve_references()
    one.data.path, one.train.duration = config.data.path, f"{config.teacher_steps}ba"
    one.eval.every = one.checkpoint.every = one.train.duration
    with workdir.locked(folder.parent):
        loop.train(Pretraining.prepare(one.lock(), folder))


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
        "# Each change of the recipe alone",
        "",
        f"{datetime.date.today()}, {processor()}, Python {platform.python_version()}, jax "
        f"{jax.__version__}",
        "`python -m experiments.recipes --config=experiments/configs/recipes.py "
        "--workdir=runs/recipes --config.data.path=DIR`",
        "",
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
        config, folder, target = read_command(sys.argv, "experiments/results/recipes")
        teacher = (folder / _TEACHER).absolute()
        train_teacher(config, teacher)
        made = functools.partial(prepare, teacher)
        seconds = step_seconds(config, folder, made)
        jax.config.update("jax_compilation_cache_dir", str((folder / "compiled").absolute()))
        todo = [*jobs(config), *equal_steps(config, seconds)]
        for found in run(todo, config, folder, seconds, prepare=made):
            target.with_suffix(".md").write_text(table(config, found, seconds, target.name))
            if found:
                draw_changes(list(CHANGES), config.budgets[0], found, target.with_suffix(".png"))
        print(target.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
