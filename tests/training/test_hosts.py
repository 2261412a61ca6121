"""Several real processes on this machine: one data order, one stop, and any number resumes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest
import yaml

from mosaicbert_jax import hosts
from mosaicbert_jax.errors import UserError
from tests.conftest import QUICK_COMPILE, ROOT, run_process, run_train

_ADDRESS = "JAX_COORDINATOR_ADDRESS"
STEPS, ROWS_BEFORE_SIGTERM = 60, 5
SETTINGS = (
    f"train.duration={STEPS}ba",
    "train.microbatch_tokens=256",
    f"checkpoint.every={STEPS}ba",
    f"eval.every={STEPS}ba",
    "model.num_hidden_layers=1",
)


def start(count: int, workdir, dataset, *settings: str) -> list[subprocess.Popen]:
    """As many processes of one run, each with one CPU device."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": QUICK_COMPILE,
        _ADDRESS: f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
    }
    return [
        subprocess.Popen(
            run_train(workdir, dataset, *SETTINGS, *settings),
            cwd=ROOT,
            env={**common, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def ended(processes: list[subprocess.Popen], status: int) -> list[tuple[str, str]]:
    """What each printed; all must have that status."""
    told = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [status] * len(processes), told
    return told


def rows(workdir, key: str = "loss") -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if key in row]


@pytest.fixture(scope="module")
def alone(dataset, tmp_path_factory):
    """The workdir of one process that ran to the end."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    done = run_process(run_train(workdir, dataset, *SETTINGS))
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(scope="module")
def stopped(dataset, tmp_path_factory):
    """The workdir of two processes that were stopped on their way, and what they printed."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    processes = start(2, workdir, dataset)
    metrics = workdir / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count('"loss"') < ROWS_BEFORE_SIGTERM:
        assert processes[0].poll() is None, processes[0].communicate()
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    return workdir, ended(processes, 75)


def test_sigterm_to_one_stops_all_after_the_same_step_with_a_checkpoint(stopped):
    workdir, told = stopped
    (step,) = [int(folder.name) for folder in (workdir / "checkpoints").glob("*")]
    assert ROWS_BEFORE_SIGTERM <= step < STEPS
    for _, errors in told:
        assert f"stopped after step {step}, which is saved; the same command resumes" in errors
    assert "2 x cpu" in told[0][0]
    events = [(row["event"], row["step"]) for row in rows(workdir, "event")]
    assert events == [("started", 0), ("saving", step), ("stopped", step)]
    assert rows(workdir, "devices")[0]["devices"] == "2 x cpu"
    # The first speaks for all; Gloo, the library that adds up on CPUs, greets in each.
    assert all("[Gloo]" in line for line in told[1][0].splitlines())


@pytest.mark.parametrize(
    ("count", "settings"),
    [(1, ()), pytest.param(4, ("mesh.fsdp=2",), marks=pytest.mark.one_end)],
)
def test_any_number_of_processes_goes_on(alone, stopped, dataset, tmp_path, count, settings):
    workdir = tmp_path / "run"
    shutil.copytree(stopped[0], workdir)
    if count == 1:
        done = run_process(run_train(workdir, dataset, *SETTINGS))
        assert done.returncode == 0, done.stderr
    else:
        ended(start(count, workdir, dataset, *settings), 0)
    true, ours = rows(alone), rows(workdir)
    (resumed,) = [row for row in rows(workdir, "event") if row["event"] == "resumed"]
    assert resumed["step"] == rows(stopped[0], "event")[-1]["step"]
    for key in ("step", "samples", "tokens", "packing_efficiency"):
        assert [row[key] for row in ours] == [row[key] for row in true]
    losses, true_losses = ([row["loss"] for row in found] for found in (ours, true))
    np.testing.assert_allclose(losses, true_losses, rtol=1e-4)
    assert losses[-1] < losses[0]
    (ours,), (true,) = rows(workdir, "eval_loss"), rows(alone, "eval_loss")
    assert ours.pop("eval_loss") == pytest.approx(true.pop("eval_loss"), rel=1e-4)
    ours.pop("eval_masked_accuracy"), true.pop("eval_masked_accuracy")
    assert ours == true  # the predictions of all processes are counted, and their labels


def test_a_mistake_ends_all_processes_with_one_line(dataset, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("no run")
    told = ended(start(2, tmp_path / "run", dataset), 2)
    assert "is neither empty nor a run" in told[0][1]
    assert "the first process" in told[1][1]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"JAX_NUM_PROCESSES": "2"},
        {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
        {"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
    ],
)
def test_half_an_address_is_said(environment):
    with pytest.raises(UserError, match=r"JAX_COORDINATOR_ADDRESS=here:1, but JAX_NUM_PROCESSES="):
        hosts.join({_ADDRESS: "here:1", **environment})


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),  # in a job, but in no step of it
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}, None),
        (
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4"},
            ((), {"local_device_ids": [0, 1, 2, 3]}),
        ),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}, ((), {})),
        (
            {_ADDRESS: "a:1", "JAX_NUM_PROCESSES": "8", "JAX_PROCESS_ID": "3"},
            (("a:1", 8, 3), {"cluster_detection_method": "deactivate"}),
        ),
    ],
)
def test_who_is_joined(monkeypatch, environment, expected):
    joined = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *args, **options: joined.append((args, options))
    )
    hosts.join(environment)
    assert joined == ([] if expected is None else [expected])


@pytest.mark.parametrize("status", [0, 1, 75])
def test_the_slurm_job_starts_again_after_a_stop_and_only_then(tmp_path, status):
    calls = tmp_path / "calls"
    for name, last in (("srun", f"exit {status}"), ("scontrol", "")):
        (tmp_path / name).write_text(f'#!/bin/bash\necho "{name} $@" >> {calls}\n{last}\n')
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [ROOT / "launch" / "slurm.sh", "--config=a b"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, "")
    started, *more = calls.read_text().splitlines()
    assert started == "srun --kill-on-bad-exit=0 .venv/bin/python train.py --config=a b"
    assert more == (["scontrol requeue 7"] if status == 75 else [])


def test_the_kubernetes_job_names_its_processes():
    service, job = yaml.safe_load_all((ROOT / "launch" / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert list(environment) == [_ADDRESS, "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"]
    name = job["metadata"]["name"]
    assert environment[_ADDRESS].split(":")[0] == f"{name}-0.{service['metadata']['name']}"
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert int(environment["JAX_NUM_PROCESSES"]) == job["spec"]["completions"]
    rules = job["spec"]["podFailurePolicy"]["rules"]
    actions = {tuple(r["onExitCodes"]["values"]): r["action"] for r in rules if "onExitCodes" in r}
    assert actions == {(75,): "Ignore", (2,): "FailJob"}
