"""Pretraining runs of several variants at equal time, for experiments/pareto.py and ablation.py.

A budget of seconds becomes a number of steps by the variant's own step time, which is measured once
with the variants taking turns, so that runs may share a machine, be interrupted, and be done again
with the same bits. What is done is in the workdir: step_seconds.json, and a folder a run.
"""

import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from tqdm import tqdm

from benchmarks.preparation import processor
from mosaicbert_jax.commands import config_line
from mosaicbert_jax.data.pipeline import Position
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import write_atomically
from mosaicbert_jax.launch import keep_freed_memory
from mosaicbert_jax.pretraining.pretraining import Pretraining
from mosaicbert_jax.storage import workdir
from mosaicbert_jax.training import loop, sharding
from mosaicbert_jax.training.durations import Duration, Progress
from mosaicbert_jax.training.loop import fresh_start

STEP_SECONDS_FILE = "step_seconds.json"
_ROUNDS, _ROUND_SECONDS = 15, 2.0

Found = dict["Job", dict[str, Any]]
Prepare = Callable[[str, ConfigDict, pathlib.Path], Pretraining]


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: a variant, a budget of time (or of steps: "300ba") and a seed."""

    variant: str
    budget: str
    seed: int

    def __str__(self) -> str:
        return f"{self.variant}, {self.budget}, seed {self.seed}"

    @property
    def folder(self) -> str:
        """Its name below the workdir."""
        return f"{self.variant}-{self.budget}-{self.seed}".replace(" ", "-").replace(",", "")


@dataclasses.dataclass(frozen=True)
class StepSeconds:
    """The step times of the variants, medians over rounds in which they took turns.

    Attributes:
      seconds: of a step, by variant.
      machine: where they were measured.
    """

    seconds: dict[str, float]
    machine: str


def read_command(
    words: Sequence[str], output: str
) -> tuple[ConfigDict, pathlib.Path, pathlib.Path]:
    """The config, the workdir, and where results go, without an ending; `output` by default.

    Raises:
      UserError: see `config_line.read_flags`; or something is missing or too much.
    """
    mark = "--output="
    config, folder, rest = config_line.read_flags(
        [word for word in words if not word.startswith(mark)]
    )
    if config is None or folder is None or rest:
        extra = f"; {' '.join(rest)} is not understood" if rest else ""
        raise UserError(f"give --config=FILE, --workdir=DIR and --config.data.path=DIR{extra}")
    outputs = [word.removeprefix(mark) for word in words if word.startswith(mark)]
    return config, pathlib.Path(folder), pathlib.Path(outputs[-1] if outputs else output)


def jobs(config: ConfigDict) -> list[Job]:
    """All runs of a comparison; each seed of everything before the next."""
    return [
        Job(variant, budget, seed)
        for seed, budget, variant in itertools.product(
            config.seeds, config.budgets, config.variants
        )
    ]


def prepare(variant: str, config: ConfigDict, folder: pathlib.Path) -> Pretraining:
    """A run as its config says."""
    return Pretraining.prepare(config, folder)


def step_seconds(config: ConfigDict, folder: pathlib.Path, prepare: Prepare) -> StepSeconds:
    """As measured before in this folder, or now."""
    path = folder / STEP_SECONDS_FILE
    if not path.exists():
        runs = {
            name: prepare(name, variant_config(config, Job(name, "1ba", 0)), folder / "none")
            for name in config.variants
        }
        with workdir.locked(folder):
            found = StepSeconds(median_step_seconds(runs), machine())
        write_atomically(path, json.dumps(dataclasses.asdict(found), indent=2) + "\n")
    found = StepSeconds(**json.loads(path.read_text()))
    if set(found.seconds) != set(config.variants):
        raise UserError(f"{path} is of other variants: {', '.join(found.seconds)}")
    return found


def machine() -> str:
    """Devices, and the cores that are to be had."""
    device = jax.devices()[0]
    return f"{jax.device_count()} x {device.device_kind}, {len(os.sched_getaffinity(0))} cores"


def median_step_seconds(runs: dict[str, Pretraining]) -> dict[str, float]:
    """Median seconds of a step, data and all, of each run; they take turns."""
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    with contextlib.ExitStack() as stack:
        trials = {name: _Trial(run, stack) for name, run in runs.items()}
        # As many steps a round as take about _ROUND_SECONDS.
        counts = {
            name: max(1, round(_ROUND_SECONDS / min(trial.seconds(1) for _ in range(5))))
            for name, trial in trials.items()
        }
        rounds = [
            {name: trial.seconds(counts[name]) for name, trial in trials.items()}
            for _ in tqdm(range(_ROUNDS), desc="measuring steps")
        ]
    return {name: statistics.median(found[name] for found in rounds) for name in runs}


class _Trial:
    """Steps of a run that is not kept."""

    def __init__(self, run: Pretraining, stack: contextlib.ExitStack):
        self._run, self._step = run, run.train_step
        with jax.set_mesh(run.mesh):
            self._state = fresh_start(run).state
        self._batches = stack.enter_context(contextlib.closing(run.batches(Position())))
        self._key = jax.device_put(jax.random.key(0), sharding.replicated(run.mesh))

    def seconds(self, steps: int) -> float:
        """Mean time of these steps."""
        begun = time.perf_counter()
        with jax.set_mesh(self._run.mesh):
            for _ in range(steps):
                batch = self._run.arrays(next(self._batches), share=1.0)
                arrays = sharding.place_batch(self._run.mesh, batch)
                rate = sharding.place_everywhere(self._run.mesh, np.float32(1e-4))
                self._state, _ = self._step(self._state, arrays, rate, self._key, *self._run.frozen)
            jax.block_until_ready(self._state)
        return (time.perf_counter() - begun) / steps


def variant_config(config: ConfigDict, job: Job) -> ConfigDict:
    """The settings of a run, its budget left as it is."""
    groups = (config.variants, config.get("numerics", {}), config.get("without", {}))
    found = next(group[job.variant] for group in groups if job.variant in group)
    one = found.copy_and_resolve_references()
    one.data.path, one.seed = config.data.path, job.seed
    one.train.duration = one.eval.every = one.checkpoint.every = job.budget
    one.checkpoint.keep = 1
    return one.lock()


def steps_of(budget: str, step_seconds: float | None) -> str:
    """A duration in steps."""
    if not Duration.parse(budget, key="budgets").is_time:
        return budget
    return f"{max(1, round(seconds_of(budget) / step_seconds))}ba"


def seconds_of(budget: str) -> float:
    """Of a budget of time."""
    return 1 / Duration.parse(budget, key="budgets").count(Progress(seconds=1.0), 1)


def run(
    todo: Sequence[Job],
    config: ConfigDict,
    folder: pathlib.Path,
    seconds: StepSeconds,
    *,
    prepare: Prepare = prepare,
    after: Callable[[Job, pathlib.Path], dict[str, Any]] = lambda job, folder: {},
) -> Iterator[dict[Job, dict[str, Any]]]:
    """Does what is not done and yields what is known after each; a run that another process has
    is left to it.

    Args:
      after: what else is to be found out about a finished run, in its folder.
    """
    yield results(todo, folder)
    for job in todo:
        place = folder / job.folder
        if (place / workdir.RESULTS_FILE).exists():
            continue
        one = variant_config(config, job)
        steps = steps_of(job.budget, seconds.seconds.get(job.variant))
        one.train.duration = one.eval.every = steps
        one.checkpoint.every = f"{max(1, int(steps.removesuffix('ba')) // 4)}ba"
        print(f"\n{job}: {steps}", flush=True)
        try:
            found = loop.train(prepare(job.variant, one, place)).row()
        except workdir.InUseError as error:
            print(f"{error}; it is left to that one", flush=True)
            continue
        found |= {"steps": int(steps.removesuffix("ba")), **after(job, place)}
        write_atomically(place / workdir.RESULTS_FILE, json.dumps(found, indent=2) + "\n")
        yield results(todo, folder)


def results(todo: Sequence[Job], folder: pathlib.Path) -> dict[Job, dict[str, Any]]:
    """Of the runs that are done."""
    return {
        job: json.loads(path.read_text())
        for job in todo
        if (path := folder / job.folder / workdir.RESULTS_FILE).exists()
    }


def by_seed(found: dict[Job, dict[str, Any]], variant: str, budget: str, key: str) -> list[float]:
    """One result of each seed that is done."""
    return [
        row[key]
        for job, row in found.items()
        if (job.variant, job.budget) == (variant, budget) and key in row
    ]


def mean_and_range(values: Sequence[float], digits: int = 3) -> str:
    """For a table: the mean, and the lowest and highest."""
    if not values:
        return ""
    return (
        f"{statistics.fmean(values):.{digits}f} "
        f"({min(values):.{digits}f} to {max(values):.{digits}f})"
    )


def mean_and_deviation(values: list[float], digits: int = 3) -> str:
    """For a table: the mean, and the sample standard deviation where there are two or more."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def heading(title: str, name: str) -> list[str]:
    """The first lines of experiments/results/NAME.md: the date, the machine and the command."""
    return [
        f"# {title}",
        "",
        f"{datetime.date.today()}, {processor()}, Python {platform.python_version()}, jax "
        f"{jax.__version__}",
        f"`python -m experiments.{name} --config=experiments/configs/{name}.py "
        f"--workdir=runs/{name} --config.data.path=DIR`",
        "",
    ]


def write_changes(
    words: Sequence[str],
    name: str,
    changes: Sequence[str],
    *,
    more: Callable[[ConfigDict, StepSeconds], list[Job]],
    table: Callable[[ConfigDict, Found, StepSeconds, str], str],
    prepared: Callable[[ConfigDict, pathlib.Path], Prepare] = lambda config, folder: prepare,
) -> None:
    """The command of an experiment on changes that are each made alone.

    Args:
      words: the command line.
      name: of the experiment, and of its results.
      changes: the variants to draw.
      more: the runs to make after those of `jobs`.
      table: the contents of the results, from a picture's name.
      prepared: makes ready what the variants need, and says how to prepare a run.
    """
    config, folder, target = read_command(words, f"experiments/results/{name}")
    made = prepared(config, folder)
    seconds = step_seconds(config, folder, made)
    jax.config.update("jax_compilation_cache_dir", str((folder / "compiled").absolute()))
    todo = [*jobs(config), *more(config, seconds)]
    for found in run(todo, config, folder, seconds, prepare=made):
        target.with_suffix(".md").write_text(table(config, found, seconds, target.name))
        if found:
            draw_changes(changes, config.budgets[0], found, target.with_suffix(".png"))
    print(target.with_suffix(".md").read_text())


def table_of_changes(
    names: Iterable[str], budget: str, found: Found, seconds: StepSeconds
) -> list[str]:
    """Each of these variants that has run with the budget, a row of Markdown each."""
    lines = [
        "| change | steps/s | steps | seeds | held-out loss | held-out masked accuracy |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    of = functools.partial(by_seed, found, budget=budget)
    for name in names:
        steps = of(name, key="steps")
        if steps:
            lines.append(
                f"| {name} | {1 / seconds.seconds[name]:.1f} | {steps[0]:,} | {len(steps)} | "
                f"{mean_and_deviation(of(name, key='eval_loss'))} | "
                f"{mean_and_deviation(of(name, key='eval_masked_accuracy'))} |"
            )
    return lines


def draw_changes(names: Sequence[str], budget: str, found: Found, path: pathlib.Path) -> None:
    """The held-out losses: a dot a seed, a line at their mean, the first variant's through all."""
    losses = {name: by_seed(found, name, budget, "eval_loss") for name in names}
    losses = {name: values for name, values in reversed(losses.items()) if values}
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axis = figure.subplots()
    for place, values in enumerate(losses.values()):
        axis.plot(values, [place] * len(values), "o", color="C0", alpha=0.5)
        axis.plot(statistics.fmean(values), place, "|", color="C0", markersize=18, mew=2)
    if baseline := losses.get(names[0]):
        axis.axvline(statistics.fmean(baseline), color="gray", linestyle="--")
    axis.set_yticks(range(len(losses)), list(losses))
    axis.set(xlabel=f"held-out loss after {budget} (lower is better)")
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
