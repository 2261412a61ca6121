"""Nothing lost: a run killed again and again ends with the bits of one never interrupted."""

import json
import os
import random
import signal
import subprocess
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests.conftest import QUICK_COMPILE, ROOT, run_process, run_train

STEPS = 40
SETTINGS = (f"train.duration={STEPS}ba", "checkpoint.every=3ba", "checkpoint.keep=3")


def final_state(workdir):
    """Every array of the last checkpoint, and its progress and position."""
    folder = (workdir / "checkpoints" / str(STEPS)).absolute()
    arrays = {}
    with ocp.StandardCheckpointer() as checkpointer:
        for item in ("model", "optimizer"):
            arrays |= {
                item + jax.tree_util.keystr(path): np.asarray(leaf)
                for path, leaf in jax.tree_util.tree_leaves_with_path(
                    checkpointer.restore(folder / item)
                )
            }
    record = json.loads(next((folder / "progress").iterdir()).read_text())
    return arrays, record


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def kill_at_random(command, workdir, moment: random.Random) -> bool:
    """Starts the run and kills it a random while after a random row; False if it ended before."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": QUICK_COMPILE, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = workdir / "metrics.jsonl"
    already = metrics.read_text().count('"loss"') if metrics.exists() else 0
    wanted = already + moment.randint(1, STEPS // 3)
    while process.poll() is None:
        if metrics.exists() and metrics.read_text().count('"loss"') >= wanted:
            time.sleep(moment.random() * 0.2)
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def test_killed_at_random_moments(dataset, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run_process(run_train(whole, dataset, *SETTINGS))
    assert result.returncode == 0, result.stderr

    seed = random.randrange(2**32)
    moment = random.Random(seed)
    command = run_train(killed, dataset, *SETTINGS)
    kills = sum(kill_at_random(command, killed, moment) for _ in range(4))
    assert kills >= 3, f"seed {seed}: the run ended before it could be killed"
    result = run_process(command)
    assert result.returncode == 0, result.stderr

    expected, expected_record = final_state(whole)
    actual, actual_record = final_state(killed)
    assert actual.keys() == expected.keys()
    assert len(expected) > 30
    for name, array in expected.items():
        assert array.tobytes() == actual[name].tobytes(), f"seed {seed}: {name} differs"
    for record in (expected_record, actual_record):
        record["progress"].pop("seconds")
    assert actual_record == expected_record

    def comparable(row):
        return {k: v for k, v in row.items() if k in ("step", "loss", "tokens", "eval_loss")}

    numbers = [
        [comparable(row) for row in rows(folder) if "event" not in row]
        for folder in (killed, whole)
    ]
    assert numbers[0] == numbers[1]
    assert [r["step"] for r in rows(whole) if "loss" in r] == list(range(1, STEPS + 1))
