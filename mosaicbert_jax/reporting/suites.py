"""Reads the folder of a GLUE suite, also while it is running."""

import dataclasses
import pathlib
from typing import Any

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.reporting.history import History, read_json
from mosaicbert_jax.storage import workdir


@dataclasses.dataclass(frozen=True)
class TaskScores:
    """A task whose runs are all finished.

    Attributes:
      score: the mean over seeds and metrics.
      seeds: how many.
      metrics: means over the seeds, by name; no losses.
    """

    name: str
    score: float
    seeds: int
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Suite:
    """What the folder of a suite holds, or of a suite per checkpoint of a pretraining run.

    Attributes:
      tasks: the finished ones.
      mean: of their scores; None if no task is finished.
      is_complete: whether they are all of GLUE.
      runs: those that have started.
      done: the names of the runs that have results.
      steps: a row for each finished checkpoint, with step, tokens, seconds and mean.
      parts: the suites of the checkpoints.
      settings: of suite.json.
    """

    name: str
    tasks: list[TaskScores]
    mean: float | None
    is_complete: bool
    runs: list[History]
    done: set[str]
    steps: list[dict[str, Any]]
    parts: list["Suite"]
    settings: dict[str, Any]

    @classmethod
    def read(cls, folder: pathlib.Path, name: str) -> "Suite":
        """Reads what is there.

        Raises:
          UserError: results.json, or a run, cannot be read.
        """
        results = read_json(folder / workdir.RESULTS_FILE) or {}
        places = [path.parent for path in folder.glob(f"*/*/{workdir.CONFIG_FILE}")]
        places = [place for place in places if place.name.isdecimal()]
        places.sort(key=lambda place: (place.parent.name, int(place.name)))
        runs = [History.read(place, f"{place.parent.name}/{place.name}") for place in places]
        try:
            tasks = [_task(task, found) for task, found in results.get("tasks", {}).items()]
            steps = [
                {key: row[key] for key in ("step", "tokens", "seconds", "mean")}
                for row in results.get("steps", [])
            ]
        except (LookupError, TypeError, AttributeError) as error:
            path = folder / workdir.RESULTS_FILE
            raise UserError(f"{path} cannot be read as a suite's results ({error!r})") from error
        return cls(
            name=name,
            tasks=tasks,
            mean=results.get("mean"),
            is_complete=bool(results.get("complete")),
            runs=runs,
            done={run.name for run in runs if run.scores is not None},
            steps=steps,
            parts=[cls.read(part, part.name) for part in _parts(folder)],
            settings=read_json(folder / workdir.SUITE_FILE) or {},
        )


def is_suite(folder: pathlib.Path) -> bool:
    """Whether a folder holds a suite, or a suite per checkpoint."""
    return (folder / workdir.SUITE_FILE).exists() or bool(_parts(folder))


def _parts(folder: pathlib.Path) -> list[pathlib.Path]:
    found = [place for place in folder.glob("step-*") if (place / workdir.SUITE_FILE).exists()]
    return sorted(found, key=lambda place: (len(place.name), place.name))


def _task(name: str, found: dict[str, Any]) -> TaskScores:
    seeds = list(found["seeds"].values())
    metrics = {
        key: sum(scores[key] for scores in seeds) / len(seeds)
        for key in seeds[0]
        if not key.startswith("loss")
    }
    return TaskScores(name, float(found["score"]), len(seeds), metrics)
