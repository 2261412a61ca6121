"""GLUE: every task with each of its seeds, and the mean.

In the workdir, TASK/SEED is the workdir of a run, and done when its results.json is there. What has
been done is not repeated; an interrupted run resumes.
"""

import contextlib
import json
import pathlib
import statistics
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import write_atomically
from mosaicbert_jax.finetuning import glue
from mosaicbert_jax.finetuning.configuration import run_config
from mosaicbert_jax.finetuning.finetuning import Finetuning, write_results
from mosaicbert_jax.finetuning.glue import TASKS
from mosaicbert_jax.finetuning.side_by_side import side_by_side
from mosaicbert_jax.finetuning.suite_run import SuiteRun
from mosaicbert_jax.storage import workdir
from mosaicbert_jax.storage.checkpoint_files import read_progress
from mosaicbert_jax.storage.working_copy import read_copy

_SUBMISSION = "submission"
_FREE = ("kind", "tasks", "processes", "checkpoint", "log", "mesh", "recovery", "eval")


def run_suites(config: ConfigDict, folder: pathlib.Path) -> None:
    """The suite, or one for each of init_from_steps: quality against pretraining's time.

    Raises:
      UserError: as `run_suite`.
    """
    if config.processes > 1:
        # This process computes nothing then, and must not take memory of a GPU.
        jax.config.update("jax_platforms", "cpu")
    if not config.init_from_steps:
        run_suite(config, folder)
        return
    if config.init_from_step is not None:
        raise UserError("init_from_step and init_from_steps are both set: give one of them")
    found = []
    for step in config.init_from_steps:
        one = config.copy_and_resolve_references()
        one.init_from_step, one.init_from_steps = step, ()
        progress = read_progress(read_copy(config.init_from, step), step)
        results = run_suite(one, folder / f"step-{step}")
        found.append({**progress, "mean": results["mean"]})
        write_results(folder, {"steps": found})
    lines = [f"{'step':>9} {'tokens':>15} {'seconds':>9} {'mean':>7}"]
    lines += [
        f"{row['step']:9,} {row['tokens']:15,} {row['seconds']:9,.0f} {100 * row['mean']:7.2f}"
        for row in found
    ]
    print("\n" + "\n".join(lines), flush=True)


def run_suite(config: ConfigDict, folder: pathlib.Path) -> dict[str, Any]:
    """Runs what is left of the suite in `folder`; returns what results.json holds.

    Raises:
      UserError: an unknown task, settings other than those that it was begun with, or as
        `Finetuning.prepare` and `side_by_side`.
    """
    if config.processes < 1:
        raise UserError(f"processes={config.processes} must be at least 1")
    names = _tasks(config)
    with workdir.locked(folder):
        _claim(config, folder)
        runs = _runs(config, folder, names)
        left = [run for run in runs if not run.is_done]
        if not left:
            return _tell(config, folder)
        several = config.processes > 1
        finished = side_by_side(left, config.processes) if several else _one_by_one(left)
        with contextlib.closing(finished):
            for done in finished:
                if all(run.is_done for run in runs if run.task == done.task):
                    results = _tell(config, folder)
    return results


def _runs(config: ConfigDict, folder: pathlib.Path, names: list[str]) -> list[SuiteRun]:
    """All runs of some tasks; what others start from comes first."""
    origins = {name: origin_of(config, folder, name, names) for name in names}
    return [
        SuiteRun(
            task=name,
            seed=seed,
            config=run_config(config, name, seed, *origins[name]),
            folder=folder / name / str(seed),
            after=None if origins[name][0] == config.init_from else pathlib.Path(origins[name][0]),
            keep=_is_needed(config, name, seed),
        )
        for name in names
        for seed in config.recipes[name].seeds
    ]


def _one_by_one(runs: list[SuiteRun]) -> Iterator[SuiteRun]:
    """Finishes the runs in this process, over all devices, and yields each."""
    first: dict[str, Finetuning] = {}  # of the task at hand, whose steps its seeds share
    for run in runs:
        print(f"\n{run}", flush=True)
        finished = run.finish(first.get(run.task))
        first = {run.task: first.get(run.task, finished)}
        yield run


def _tell(config: ConfigDict, folder: pathlib.Path) -> dict[str, Any]:
    """Writes and prints the results so far, and the test labels; returns the results."""
    results = suite_results(config, folder)
    write_results(folder, results)
    for name in results["tasks"]:
        _submit(folder, name, results)
    print(f"\n{table(results)}", flush=True)
    return results


def suite_results(config: ConfigDict, folder: pathlib.Path) -> dict[str, Any]:
    """The scores of all runs that are done; a task's score is the mean over seeds and metrics."""
    tasks: dict[str, Any] = {}
    for name in TASKS:
        runs = {
            str(seed): json.loads(path.read_text())["scores"]
            for seed in config.recipes[name].seeds
            if (path := folder / name / str(seed) / workdir.RESULTS_FILE).exists()
        }
        if len(runs) == len(config.recipes[name].seeds):
            found = [[scores[key] for key in glue.score_names(name)] for scores in runs.values()]
            tasks[name] = {
                "score": statistics.fmean(value for values in found for value in values),
                "seeds": runs,
            }
    mean = statistics.fmean(task["score"] for task in tasks.values()) if tasks else None
    return {"tasks": tasks, "mean": mean, "complete": len(tasks) == len(TASKS)}


def table(results: dict[str, Any]) -> str:
    """Tasks, seeds, metrics and scores for the terminal, in percent."""
    lines = [f"{'task':8} {'seeds':>5} {'score':>7}  mean over seeds of"]
    for name, task in results["tasks"].items():
        seeds = list(task["seeds"].values())
        means = {
            key: statistics.fmean(scores[key] for scores in seeds)
            for key in seeds[0]
            if not key.startswith("loss")
        }
        shown = ", ".join(
            f"{key.replace('_', ' ')} {100 * value:.2f}" for key, value in means.items()
        )
        lines.append(f"{name:8} {len(seeds):5} {100 * task['score']:7.2f}  {shown}")
    of = "GLUE" if results["complete"] else f"{len(results['tasks'])} of {len(TASKS)} tasks"
    lines.append(f"{'mean':8} {'':5} {100 * results['mean']:7.2f}  {of}")
    return "\n".join(lines)


def _tasks(config: ConfigDict) -> list[str]:
    """The tasks asked for, in GLUE's order: what others start from comes first."""
    asked = [name.strip() for name in config.tasks.split(",") if name.strip()]
    unknown = [name for name in asked if name not in TASKS]
    if unknown or not asked:
        raise UserError(f"tasks={config.tasks!r}: name some of {', '.join(TASKS)}")
    if not config.init_from or not config.data.path:
        raise UserError(
            "give a pretrained model with --config.init_from=DIR, and GLUE's folder (or "
            f"{glue.TFDS}) with --config.data.path=DIR"
        )
    for name in asked:
        seeds = config.recipes[name].seeds
        if len(set(seeds)) < len(seeds):
            raise UserError(f"recipes.{name}.seeds={seeds}: a seed is there twice")
    return [name for name in TASKS if name in asked]


def origin_of(
    config: ConfigDict, folder: pathlib.Path, name: str, names: list[str]
) -> tuple[str, int | None]:
    """What a task starts from; init_from itself where the task before it is skipped."""
    before = config.recipes[name].starts_from
    if before:
        run = folder / before / str(config.recipes[before].seeds[0])
        if before in names or (run / workdir.RESULTS_FILE).exists():
            return str(run), None
        print(f"\n{name} would start from {before}, which is not among the tasks", flush=True)
    return config.init_from, config.init_from_step


def _is_needed(config: ConfigDict, name: str, seed: int) -> bool:
    """Whether other tasks start from the model of a run."""
    is_start = any(recipe.starts_from == name for recipe in config.recipes.values())
    return is_start and seed == config.recipes[name].seeds[0]


def _submit(folder: pathlib.Path, name: str, results: dict[str, Any]) -> None:
    """Copies the test labels of the seed with the best score."""
    keys, runs = glue.score_names(name), results["tasks"][name]["seeds"]
    best = max(runs, key=lambda seed: statistics.fmean(runs[seed][key] for key in keys))
    (folder / _SUBMISSION).mkdir(exist_ok=True)
    for path in (folder / name / best).glob("*.tsv"):
        write_atomically(folder / _SUBMISSION / path.name, path.read_text())


def _claim(config: ConfigDict, folder: pathlib.Path) -> None:
    """Keeps the settings; raises UserError if results by other ones are there."""
    settings = {k: v for k, v in json.loads(config.to_json()).items() if k not in _FREE}
    del settings["data"]["path"]  # it may move
    path = folder / workdir.SUITE_FILE
    if path.exists() and any(folder.glob(f"*/*/{workdir.RESULTS_FILE}")):
        changed = workdir.differences(json.loads(path.read_text()), settings)
        if changed:
            raise UserError(
                f"{folder} holds results by other settings: {'; '.join(changed)}. "
                "Give these settings again, or another --workdir"
            )
    write_atomically(path, json.dumps(settings, indent=2) + "\n")
