"""A race: whose recipe reaches a held-out loss with the fewest tokens, and in the least time.

    python -m benchmarks.race --data DIR --entry NAME [NAME ...]    3 seeds of each entry
    python -m benchmarks.race --data DIR --time                     step times, in turns
    python -m benchmarks.race                                       the table alone

Rules, tracks and the table: benchmarks/race/README.md.
"""

import argparse
import dataclasses
import datetime
import importlib
import json
import pathlib
import pkgutil
import platform
import statistics
import sys
from typing import Any

import jax
from ml_collections import ConfigDict

from benchmarks.preparation import processor
from benchmarks.race import entries
from experiments.comparison import machine, median_step_seconds
from mosaicbert_jax.data.dataset import TokenDataset
from mosaicbert_jax.errors import UserError, explained
from mosaicbert_jax.files import write_atomically
from mosaicbert_jax.pretraining.evaluation import MaskedLMScores
from mosaicbert_jax.pretraining.pretraining import Pretraining
from mosaicbert_jax.storage.checkpoint_files import read_params
from mosaicbert_jax.training import loop

_HERE = pathlib.Path(__file__).parent
_LOGS, _README, _TIMES = _HERE / "logs", _HERE / "README.md", "step_seconds.json"
_COLUMNS = (
    "entry",
    "parameters",
    "tokens",
    "held-out loss (each seed)",
    "accuracy",
    "reached",
    "tokens, of the baseline's",
    "time, of the baseline's",
)


@dataclasses.dataclass(frozen=True)
class Track:
    """What all entries share.

    Attributes:
      name: of its folder of logs.
      digest: of the prepared data; None: not fixed yet.
      parameters: the most that a model may have.
      baseline: the entry whose loss is to be reached.
      seeds: of the runs.
      evaluation_seed: of the masks of the held-out text, which are the same for all.
      evaluation_rate: share of its tokens that is predicted.
    """

    name: str
    digest: str | None
    parameters: int
    baseline: str
    seeds: tuple[int, ...] = (17, 18, 19)
    evaluation_seed: int = 0
    evaluation_rate: float = 0.15

    @property
    def logs(self) -> pathlib.Path:
        """A file an entry, and the step times."""
        return _LOGS / self.name

    def results(self) -> dict[str, list[dict[str, Any]]]:
        """By entry, a row a seed."""
        paths = sorted(self.logs.glob("*.jsonl"))
        return {p.stem: [json.loads(line) for line in p.read_text().splitlines()] for p in paths}


MINI = Track(
    name="mini",
    digest="41420cccc5e94891a69dd10353e2990ce86bbf55fec5521a9d4ec5c5b89a54d9",
    parameters=875_648,
    baseline="mosaicbert",
)
GPU = Track(name="gpu", digest=None, parameters=137_400_384, baseline="mosaicbert_base")
TRACKS = {track.name: track for track in (MINI, GPU)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--track", choices=TRACKS, default="mini")
    parser.add_argument("--entry", nargs="+", default=[], help="names in benchmarks/race/entries")
    parser.add_argument("--data", help="the track's data, prepared")
    parser.add_argument("--workdir", default="runs/race", help="where the runs go")
    parser.add_argument("--time", action="store_true", help="measure the entries' step times")
    options = parser.parse_args()
    with explained("interrupted; the same command resumes"):
        track, workdir = TRACKS[options.track], pathlib.Path(options.workdir)
        if options.entry or options.time:
            _check_data(options.data, track)
        for name in options.entry:
            for seed in track.seeds:
                race(name, seed, track, options.data, workdir)
        if options.time:
            time_entries(track, options.data, workdir)
        write_table(track)


def _check_data(data: str | None, track: Track) -> None:
    if not data:
        raise UserError("give --data DIR, prepared as benchmarks/race/README.md says")
    digest = TokenDataset(data).metadata.digest
    if track.digest not in (None, digest):
        raise UserError(f"{data} is not the track's data: its digest is {digest}")


def configured(name: str, seed: int, data: str) -> ConfigDict:
    """An entry's config, evaluated and saved at its end alone.

    Raises:
      UserError: there is no such entry.
    """
    names = [module.name for module in pkgutil.iter_modules(entries.__path__)]
    if name not in names:
        raise UserError(f"--entry {name}: there are {', '.join(names)}")
    config = importlib.import_module(f"benchmarks.race.entries.{name}").get_config()
    config.seed, config.data.path = seed, data
    config.eval.every = config.checkpoint.every = config.train.duration
    config.checkpoint.keep = 1
    return config


def race(name: str, seed: int, track: Track, data: str, workdir: pathlib.Path) -> None:
    """One run of an entry, whose result is appended to its log; none if it has it already.

    Raises:
      UserError: the model has more parameters than the track allows.
    """
    if any(row["seed"] == seed for row in track.results().get(name, ())):
        return
    print(f"\n{name}, seed {seed}", flush=True)
    run = Pretraining.prepare(configured(name, seed, data), workdir / f"{name}-{seed}")
    if run.parameters > track.parameters:
        raise UserError(
            f"{name} has {run.parameters:,} parameters; at most {track.parameters:,} may race"
        )
    loop.train(run)
    found, last = judge(run, track), last_row(run.folder)
    row = {
        "seed": seed,
        "loss": found.loss,
        "masked_accuracy": found.masked_accuracy,
        "tokens": last["tokens"],
        "steps": last["step"],
        "seconds": last["seconds"],
        "parameters": run.parameters,
        "machine": machine(),
        "processor": processor(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "date": str(datetime.date.today()),
    }
    track.logs.mkdir(parents=True, exist_ok=True)
    with (track.logs / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def judge(run: Pretraining, track: Track) -> MaskedLMScores:
    """The final weights on the held-out text, masked alike for all entries."""
    config = run.config.copy_and_resolve_references().unlock()
    config.seed, config.eval.masking_rate = track.evaluation_seed, track.evaluation_rate
    fixed = dataclasses.replace(run, config=config.lock())
    with jax.set_mesh(run.mesh):
        found = fixed.evaluate(read_params(run.folder, run.abstract_state().params))
    assert found is not None  # the track's data have a validation split
    return found


def last_row(folder: pathlib.Path) -> dict[str, Any]:
    """The last row of training in metrics.jsonl."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "loss" in row][-1]


def time_entries(track: Track, data: str, workdir: pathlib.Path) -> None:
    """Measures a step of each entry that has a log, in turns on this machine."""
    runs = {
        entry: Pretraining.prepare(configured(entry, track.seeds[0], data), workdir / "none")
        for entry in track.results()
    }
    found = {
        "machine": f"{processor()}, {machine()}, jax {jax.__version__}",
        "date": str(datetime.date.today()),
        "seconds": median_step_seconds(runs),
    }
    write_atomically(track.logs / _TIMES, json.dumps(found, indent=2) + "\n")


def table(track: Track) -> list[str]:
    """The entries, those that reach the target first, by their tokens."""
    found, path = track.results(), track.logs / _TIMES
    times = json.loads(path.read_text()) if path.exists() else None
    base = found.get(track.baseline)
    if not base:
        return ["No entry has raced on this track yet."]
    target = statistics.fmean(row["loss"] for row in base)

    def tokens(rows):
        return statistics.fmean(row["tokens"] for row in rows)

    def seconds(name, rows):
        return statistics.fmean(row["steps"] for row in rows) * times["seconds"][name]

    lines = [
        f"Target: {target:.3f}, the mean of `{track.baseline}`.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        f"|{' --- |' * len(_COLUMNS)}",
    ]

    def order(item):
        name, rows = item
        return statistics.fmean(row["loss"] for row in rows) > target, tokens(rows), name

    for name, rows in sorted(found.items(), key=order):
        losses = [row["loss"] for row in rows]
        mean = statistics.fmean(losses)
        time = "not measured"
        if times and {name, track.baseline} <= times["seconds"].keys():
            time = f"{seconds(name, rows) / seconds(track.baseline, base):.2f}"
        lines.append(
            f"| [{name}](entries/{name}.py) | {rows[0]['parameters']:,} | {tokens(rows):,.0f} | "
            f"{mean:.3f} ({', '.join(f'{loss:.3f}' for loss in losses)}) | "
            f"{statistics.fmean(row['masked_accuracy'] for row in rows):.3f} | "
            f"{'yes' if mean <= target else 'no'} | {tokens(rows) / tokens(base):.2f} | {time} |"
        )
    if times:
        lines += ["", f"Step times: {times['machine']}, {times['date']}; medians, taking turns."]
    return lines


def write_table(track: Track) -> None:
    """Replaces the track's table in README.md, and prints it."""
    begin, end = f"<!-- {track.name} -->", f"<!-- end of {track.name} -->"
    before, _, rest = _README.read_text().partition(begin)
    _, _, after = rest.partition(end)
    text = "\n".join(table(track))
    _README.write_text(f"{before}{begin}\n{text}\n{end}{after}")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
