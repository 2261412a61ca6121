"""What becomes of runs that meet with faults: kills, damaged files, full disks, bad batches.

    python -m campaigns.faults [--faults 240] [--seed 0] [--processes 2] [--output NAME]

Small pretraining runs are started again and again, and each start meets one fault, drawn at random
with the seed, until a last one ends the run. Then its checkpoint is compared, bit for bit, with
that of a run that met none. Each fault ends in one of these:

  same bits  the run went on after it, and ended with the bits of an uninterrupted one
  refused    the next start said in one line what is wrong and exited with status 2; after the file
             had been put back, the run went on
  nothing    the run was over before the moment came; not counted
  WRONG      anything else: other bits, a traceback, a status or a hang that nobody can act on

Each start is train.py's own code in a process of its own, forked from one that has imported it,
which is what makes hundreds of starts affordable. Where the system lets us, the runs' folders lie
on a small file system of their own, which a fault fills to the last byte; elsewhere the kernel
refuses writes beyond a file size (RLIMIT_FSIZE). Writes OUTPUT.md and OUTPUT.json.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import pathlib
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from tqdm import tqdm

from benchmarks.preparation import processor
from benchmarks.records import dumps
from campaigns import fault_worker
from campaigns.fault_worker import Fault
from mosaicbert_jax.errors import TRY_AGAIN
from mosaicbert_jax.preparation import assembly, preparation
from mosaicbert_jax.text import blocks

STEPS = 24
SETTINGS = (
    f"train.duration={STEPS}ba",
    "train.batch_tokens=512",
    "train.microbatch_tokens=512",
    "model.num_hidden_layers=1",
    "checkpoint.every=4ba",
    "eval.every=8ba",
    "eval.max_tokens=2000",
    "log.every=1",
)
SECONDS = 180  # a start that takes longer hangs
_MEBIBYTES = 24  # of the file system that is filled

# How often each kind is drawn.
_KINDS = {
    "SIGKILL": 10,
    "SIGTERM": 3,
    "SIGINT": 2,
    "full disk": 4,
    "damaged checkpoint": 6,
    "damaged workdir": 3,
    "damaged data": 4,
}
_SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
_PHASES = ("start", "restore", "step", "save", "evaluation")
_DAMAGES = ("truncated", "deleted", "a bit flipped")
SAME, REFUSED, NOTHING, WRONG = "same bits", "refused", "nothing", "WRONG"


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What the runs of a group have in common.

    Attributes:
      name: for the table.
      poisoned: steps whose loss is not a number, in the order of the data.
      settings: overrides besides SETTINGS.
      lost: number of the training shard that is missing, if one is.
    """

    name: str
    poisoned: tuple[int, ...] = ()
    settings: tuple[str, ...] = ()
    lost: int | None = None


PLAIN = Scenario("plain")
_SCENARIOS = (
    PLAIN,
    Scenario("plain, a worker process for data", settings=("data.workers=1",)),
    Scenario("two bad batches", poisoned=(7, 15)),
    Scenario("a shard missing and skipped", settings=("data.on_error=skip",), lost=1),
)


@dataclasses.dataclass
class Outcome:
    """What became of one fault."""

    scenario: str
    kind: str
    where: str
    found: str = SAME
    told: str = ""


class Campaign:
    """The data, the uninterrupted runs, and the process that starts are forked from.

    Args:
      folder: empty; all that the campaign writes is below.
    """

    def __init__(self, folder: pathlib.Path, scenarios: Sequence[Scenario] = _SCENARIOS):
        self._folder = folder
        self.scenarios = scenarios
        self._forks = multiprocessing.get_context("forkserver")
        self._forks.set_forkserver_preload(["campaigns.fault_worker"])
        self._cache = folder / "compiled"
        self._data = prepared(folder)
        self.expected: dict[str, list] = {}
        self._batches: list[int] = []

    def prepare(self) -> None:
        """Runs each scenario without a fault."""
        for scenario in tqdm(self.scenarios, desc="uninterrupted runs"):
            data = self._data_of(scenario, self._folder / "whole-data")
            place = self._folder / "whole" / scenario.name.replace(" ", "-")
            sums = self._folder / "sums.json"
            status, told = self.start(scenario, place, data, Fault(note=str(sums)))
            if status != 0:
                raise RuntimeError(f"{scenario.name}: an uninterrupted run failed: {told}")
            if not scenario.poisoned and not self._batches:
                self._batches = json.loads(sums.read_text())
            self.expected[scenario.name] = state(place)
            shutil.rmtree(data)

    def start(
        self, scenario: Scenario, place: pathlib.Path, data: pathlib.Path, fault: Fault
    ) -> tuple[int, str]:
        """Runs train.py to its end or to the fault; its exit status and what it said last."""
        settings = (*SETTINGS, *scenario.settings)
        words = [
            "train.py",
            f"--config={fault_worker.ROOT}/configs/tiny.py",
            f"--workdir={place}",
            f"--config.data.path={data}",
            *(f"--config.{setting}" for setting in settings),
        ]
        poisoned = tuple(self._batches[step - 1] for step in scenario.poisoned)
        log = self._folder / "logs" / f"{place.name}.log"  # not on the disk that is filled
        log.parent.mkdir(exist_ok=True)
        process = self._forks.Process(
            target=fault_worker.train, args=(words, fault, poisoned, str(self._cache), str(log))
        )
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            return fault_worker.HUNG, last_lines(log)
        return process.exitcode, last_lines(log)

    def chain(self, number: int, faults: int, seed: int, disk: pathlib.Path) -> list[Outcome]:
        """One run with several faults, one after the other, and what became of each."""
        rng = random.Random(f"{seed} {number}")
        scenario = rng.choices(self.scenarios, weights=(4, 1, 1, 1)[: len(self.scenarios)])[0]
        place, data = disk / f"run-{number}", disk / f"data-{number}"
        self._data_of(scenario, data)
        outcomes: list[Outcome] = []
        try:
            while len(outcomes) < faults and not _is_complete(place):
                kinds = dict(_KINDS)
                if scenario.lost is not None:
                    del kinds["damaged data"]  # which would be skipped, and change the result
                if scenario.poisoned:
                    # A checkpoint that is lost may be the one to go back to; the bits are others
                    # then, rightly.
                    del kinds["damaged checkpoint"], kinds["full disk"]
                (kind,) = rng.choices(list(kinds), weights=kinds.values())
                outcomes.append(self._meet(kind, scenario, place, data, disk, rng))
                if outcomes[-1].found == WRONG:
                    return outcomes
            status, told = self.start(scenario, place, data, Fault())
            wrong = ""
            if status:
                wrong = f"the last start ended with status {status}: {told}"
            elif state(place) != self.expected[scenario.name]:
                wrong = "the run ended with other bits"
            for outcome in outcomes if wrong else ():
                outcome.found, outcome.told = WRONG, wrong
            return outcomes
        finally:
            shutil.rmtree(place, ignore_errors=True)
            shutil.rmtree(data, ignore_errors=True)

    def _meet(
        self,
        kind: str,
        scenario: Scenario,
        place: pathlib.Path,
        data: pathlib.Path,
        disk: pathlib.Path,
        rng: random.Random,
    ) -> Outcome:
        """One start with one fault of this kind."""
        outcome = Outcome(scenario.name, kind, "")
        if kind in _SIGNALS:
            outcome.where = rng.choice(_PHASES)
            fault = Fault(outcome.where, rng.randint(1, 3), rng.random(), int(_SIGNALS[kind]))
            status, told = self.start(scenario, place, data, fault)
            # A signal before the run listens ends the process as it ends any other.
            allowed = {-_SIGNALS[kind], 0}
            if kind != "SIGKILL":
                allowed |= {TRY_AGAIN, 130}
            if status not in allowed:
                outcome.found, outcome.told = WRONG, f"status {status}: {told}"
            elif status == 0:
                outcome.found = NOTHING
            return outcome
        if kind == "full disk":
            outcome.where = rng.choice(("save", "step", "start"))
            fault = Fault(
                outcome.where, rng.randint(1, 3), rng.random(), fill=str(disk), hold=rng.random()
            )
            status, told = self.start(scenario, place, data, fault)
            (disk / fault_worker.FILLER).unlink(missing_ok=True)
            if status not in (0, 2) or (status == 2 and not told.startswith("error: ")):
                outcome.found, outcome.told = WRONG, f"status {status}: {told}"
            elif status == 2:
                outcome.found, outcome.told = REFUSED, told
            return outcome
        return self._damage(outcome, scenario, place, data, rng)

    def _damage(
        self,
        outcome: Outcome,
        scenario: Scenario,
        place: pathlib.Path,
        data: pathlib.Path,
        rng: random.Random,
    ) -> Outcome:
        """One file is damaged, and a start meets it; that start is killed later on."""
        folder = {"damaged checkpoint": place / "checkpoints", "damaged data": data}
        files = _files(folder.get(outcome.kind, place))
        if outcome.kind == "damaged workdir":
            files = [path for path in files if "checkpoints" not in path.parts]
        if not files:
            outcome.found = NOTHING
            return outcome
        path, how = rng.choice(files), rng.choice(_DAMAGES)
        outcome.where = f"{_kind_of(path)}, {how}"
        before = path.read_bytes()
        _harm(path, how, rng)
        fault = Fault("step", rng.randint(2, 6), rng.random(), int(signal.SIGKILL))
        status, told = self.start(scenario, place, data, fault)
        if status == 2 and told.startswith("error: ") and "\n" not in told:
            outcome.found, outcome.told = REFUSED, told
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(before)
        elif status not in (0, -signal.SIGKILL):
            outcome.found, outcome.told = WRONG, f"status {status}: {told}"
        elif outcome.kind == "damaged data":
            path.write_bytes(before)  # what is not read needs no whole file
        return outcome

    def _data_of(self, scenario: Scenario, place: pathlib.Path) -> pathlib.Path:
        shutil.copytree(self._data, place)
        if scenario.lost is not None:
            (place / f"train-{scenario.lost:05d}.tokens.npy").unlink()
        return place


def prepared(folder: pathlib.Path) -> pathlib.Path:
    """A data set of a few hundred sentences in several shards."""
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in ("ba", "de", "ki", "lo", "mu") for b in ("ra", "so", "ti", "nu")]
    text = folder / "text.txt"
    text.write_text("\n".join(" ".join(rng.choice(words, rng.integers(5, 40))) for _ in range(500)))
    sizes = (blocks.BLOCK_BYTES, assembly.SHARD_BYTES)
    blocks.BLOCK_BYTES, assembly.SHARD_BYTES = 4000, 8000
    try:
        preparation.prepare(
            preparation.PrepareOptions((str(text),), str(folder / "data"), vocab_size=128),
            say=lambda line: None,
        )
    finally:
        blocks.BLOCK_BYTES, assembly.SHARD_BYTES = sizes
    return folder / "data"


def state(place: pathlib.Path) -> list:
    """The bytes of every array of the last checkpoint, and progress, position and health."""
    folder = (place / "checkpoints" / str(STEPS)).absolute()
    if not folder.is_dir():
        return []
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = [checkpointer.restore(folder / item) for item in ("model", "optimizer")]
    record = json.loads((folder / "progress" / "metadata").read_text())
    for name in ("seconds", "dollars"):
        record["progress"].pop(name, None)
    return [record, *(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(arrays))]


def _is_complete(place: pathlib.Path) -> bool:
    return (place / "checkpoints" / str(STEPS)).is_dir()


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _kind_of(path: pathlib.Path) -> str:
    """What a file is, without the numbers in its name."""
    if "checkpoints" in path.parts:
        inside = path.parts[path.parts.index("checkpoints") + 2 :]
        return "/".join(("checkpoint", *inside[:1])) if len(inside) > 1 else inside[0]
    if "tensorboard" in path.parts:
        return "tensorboard"
    if path.suffix == ".npy":
        return "shard's " + path.name.split(".")[1]
    return path.name


def _harm(path: pathlib.Path, how: str, rng: random.Random) -> None:
    data = path.read_bytes()
    if how == "deleted" or not data:
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[: rng.randrange(len(data))])
    else:
        place = rng.randrange(len(data))
        changed = data[place] ^ (1 << rng.randrange(8))
        path.write_bytes(data[:place] + bytes([changed]) + data[place + 1 :])


def last_lines(log: pathlib.Path) -> str:
    """The error line, or the end of what a start said."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if lines and lines[-1].startswith("error: ") and "Traceback" not in "".join(lines):
        return lines[-1]
    return "\n".join(lines[-15:]).replace(sys.base_prefix, "PYTHON")


@contextlib.contextmanager
def file_system(place: pathlib.Path) -> Iterator[pathlib.Path]:
    """A small file system of its own at `place`, where the system lets us; else just a folder."""
    place.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={_MEBIBYTES}m", "none", str(place)]
    try:
        mounted = subprocess.run(options, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield place
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def campaign(
    made: Campaign, faults: int, *, seed: int, disks: Sequence[pathlib.Path], a_run: int = 5
) -> list[Outcome]:
    """At least `faults` faults that happened, and what became of each.

    Args:
      made: prepared.
      disks: folders for runs, each of which has one at a time.
      a_run: faults in one run.
    """
    outcomes: list[Outcome] = []
    free, numbers = list(disks), itertools.count()
    running: dict[concurrent.futures.Future, pathlib.Path] = {}
    with (
        concurrent.futures.ThreadPoolExecutor(len(disks)) as pool,
        tqdm(total=faults, desc="faults") as bar,
    ):
        while bar.n < faults or running:
            while free and bar.n < faults:
                disk = free.pop()
                running[pool.submit(made.chain, next(numbers), a_run, seed, disk)] = disk
            done, _ = concurrent.futures.wait(running, return_when="FIRST_COMPLETED")
            for future in done:
                free.append(running.pop(future))
                happened = [one for one in future.result() if one.found != NOTHING]
                outcomes += happened
                bar.update(len(happened))
    return outcomes


def table(
    outcomes: Sequence[Outcome],
    command: str,
    *,
    title: str = "Runs that meet with faults",
    kinds: Sequence[str] = tuple(_KINDS),
    packages: Sequence[str] = ("jax", "orbax-checkpoint"),
) -> str:
    """Outcomes by kind and place, with machine, versions and command."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    wrong = [outcome for outcome in outcomes if outcome.found == WRONG]
    counts = collections.Counter((o.kind, o.where, o.found) for o in outcomes)
    order = list(kinds)
    places = sorted({(order.index(o.kind), o.kind, o.where) for o in outcomes})
    lines = [
        f"# {title}",
        "",
        f"{datetime.date.today()}, {processor()}, {platform.system()} {platform.release()}, Python "
        f"{platform.python_version()}, {versions}",
        f"`{command}`",
        "",
        f"{len(outcomes)} faults in runs of {STEPS} steps that save every 4 and evaluate every 8, "
        f"each followed by a restart; **{len(wrong)} ended wrongly**. "
        "By what the runs had in common: "
        + ", ".join(
            f"{name} {count}"
            for name, count in collections.Counter(o.scenario for o in outcomes).items()
        )
        + ".",
        "",
        "| fault | where | same bits | refused in one line | wrong |",
        "| --- | --- | --- | --- | --- |",
    ]
    for _, kind, where in places:
        cells = " | ".join(str(counts[kind, where, found]) for found in (SAME, REFUSED, WRONG))
        lines.append(f"| {kind} | {where} | {cells} |")
    totals = collections.Counter(outcome.found for outcome in outcomes)
    cells = " | ".join(f"**{totals[found]}**" for found in (SAME, REFUSED, WRONG))
    lines.append(f"| **all** | | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("campaigns/results/faults")
    )
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        disks = [
            stack.enter_context(file_system(folder / f"disk-{number}"))
            for number in range(options.processes)
        ]
        made = Campaign(folder)
        made.prepare()
        outcomes = campaign(made, options.faults, seed=options.seed, disks=disks)
    command = (
        f"python -m campaigns.faults --faults {options.faults} --seed {options.seed} "
        f"--processes {options.processes}"
    )
    text = table(outcomes, command)
    options.output.with_suffix(".md").write_text(text)
    records: list[dict[str, Any]] = [dataclasses.asdict(outcome) for outcome in outcomes]
    text = dumps(records).replace(str(folder), "FOLDER")
    options.output.with_suffix(".json").write_text(text)
    print(text)
    if any(outcome.found == WRONG for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
