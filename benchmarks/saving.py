"""What saving and restarting cost, with a MosaicBERT of the quickstart's size.

    python -m benchmarks.saving --data DIR [--rounds 15] [--output benchmarks/results/saving.md]

Saving: rounds of 100 training steps take turns, with one checkpoint saved in the middle and without
any; a round ends when the checkpoint is whole. The difference is all that a checkpoint costs, told
as a share of 500 steps. Restart: train.py resumes a finished run, from its start to the
first step, data checked, checkpoint verified, program compiled.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.preparation import processor
from configs import quickstart
from mosaicbert_jax.data.pipeline import Position
from mosaicbert_jax.launch import keep_freed_memory
from mosaicbert_jax.pretraining.pretraining import Pretraining
from mosaicbert_jax.training import checkpoints, sharding
from mosaicbert_jax.training.durations import Progress
from mosaicbert_jax.training.loop import fresh_start
from mosaicbert_jax.training.metrics import METRICS_FILE, RESUMED, STARTED
from mosaicbert_jax.training.recovery import Health

ROOT = pathlib.Path(__file__).parent.parent
STEPS, INTERVAL, RESTARTS = 100, 500, 3


def saving_seconds(data: str, folder: pathlib.Path, rounds: int) -> tuple[float, float, int]:
    """Median seconds of a step, median of what a checkpoint adds, and the checkpoint's bytes."""
    config = quickstart.get_config("mosaicbert")
    config.data.path = data
    keep_freed_memory()
    run = Pretraining.prepare(config, folder / "saving")
    step = run.train_step
    key = jax.device_put(jax.random.key(0), sharding.replicated(run.mesh))
    plain, added = [], []
    with (
        jax.set_mesh(run.mesh),
        checkpoints.Checkpoints(run.folder, keep=2) as store,
        contextlib.closing(run.batches(Position())) as batches,
    ):
        state = fresh_start(run).state
        saved = 0

        def a_round(state, save: bool):
            nonlocal saved
            begun = time.perf_counter()
            for number in range(STEPS):
                batch = next(batches)
                arrays = sharding.place_batch(run.mesh, batch.arrays)
                rate = sharding.place_everywhere(run.mesh, np.float32(1e-4))
                state, metrics = step(state, arrays, rate, key)
                jax.device_get(metrics)
                if save and number == STEPS // 2:
                    saved += 1
                    progress = Progress(step=saved)
                    point = checkpoints.Snapshot(state, progress, batch.position, Health())
                    store.save(point, run.record)
            jax.block_until_ready(state)
            store.wait()
            return state, time.perf_counter() - begun

        for save in (False, True):  # compiled and warm
            state, _ = a_round(state, save)
        for _ in tqdm(range(rounds), desc="rounds"):
            state, without = a_round(state, False)
            state, with_one = a_round(state, True)
            plain.append(without / STEPS)
            added.append(with_one - without)
        size = sum(
            path.stat().st_size
            for path in (run.folder / "checkpoints" / str(saved)).rglob("*")
            if path.is_file()
        )
    return statistics.median(plain), statistics.median(added), size


def restart_seconds(data: str, folder: pathlib.Path) -> list[float]:
    """From the start of train.py to its first step, of runs that go on."""
    found = []
    for number in range(RESTARTS + 1):
        steps = 20 * (number + 1)
        line = [
            sys.executable, str(ROOT / "train.py"),
            f"--config={ROOT}/configs/quickstart.py:mosaicbert",
            f"--workdir={folder / 'restart'}", f"--config.data.path={data}",
            "--config.checkpoint.every=20ba", "--config.eval.every=1000ba", "--config.log.every=1",
        ]  # fmt: skip
        begun = time.time()
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, cwd=ROOT)
        try:
            metrics = folder / "restart" / METRICS_FILE
            while process.poll() is None and not _has_stepped(metrics, starts=number + 1):
                time.sleep(0.02)
            found.append(time.time() - begun)
            while (
                process.poll() is None
                and not (folder / "restart" / "checkpoints" / str(steps)).exists()
            ):
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
    return found[1:]  # the first one began anew


def _has_stepped(metrics: pathlib.Path, starts: int) -> bool:
    """Whether there is a row of a step behind the event of that many starts."""
    if not metrics.exists():
        return False
    rows = [json.loads(line) for line in metrics.read_text().splitlines() if line.endswith("}")]
    begun = [i for i, row in enumerate(rows) if row.get("event") in (STARTED, RESUMED)]
    return len(begun) == starts and any("loss" in row for row in rows[begun[-1] :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder that `prepare` has written")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results/saving.md")
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        step, added, size = saving_seconds(options.data, place, options.rounds)
        restarts = restart_seconds(options.data, place)
    text = "\n".join(
        [
            "# What saving and restarting cost",
            "",
            f"{datetime.date.today()}, {processor()}, Python {platform.python_version()}, jax "
            f"{jax.__version__}",
            f"`python -m benchmarks.saving --data DIR --rounds {options.rounds}`",
            "",
            "A MosaicBERT of the quickstart's size, a checkpoint of "
            f"{size / 1e6:.1f} MB. Medians; rounds with and without a checkpoint took turns.",
            "",
            "| | |",
            "| --- | --- |",
            f"| a step | {1000 * step:.1f} ms |",
            f"| what a checkpoint adds, until it is whole | {1000 * added:.0f} ms |",
            f"| share of the time of {INTERVAL} steps | {added / (INTERVAL * step):.2%} |",
            "| from the command to the first step of a run that resumes | "
            f"{statistics.median(restarts):.1f} s ({min(restarts):.1f} to {max(restarts):.1f}) |",
        ]
    )
    options.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
