"""launch/: Ray on SLURM and Kubernetes, as far as can be seen without them."""

import os
import socket
import subprocess

import pytest

from tests.conftest import ROOT

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")


@pytest.mark.parametrize("status", [0, 2])
def test_the_slurm_job_runs_the_command_and_ends_ray(tmp_path, status):
    """With two nodes that are processes here, and a head that listens and is no Ray."""
    calls = tmp_path / "calls"
    commands = {
        "srun": 'shift 2\nfor SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" & done\nwait',
        "hostname": "echo 127.0.0.1 10.0.0.1",
        ".venv/bin/python": "echo secret",
        ".venv/bin/ray": f'echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN $@" >> {calls}\nsleep 2',
        ".venv/bin/mosaicbert": f'echo "mosaicbert $@" >> {calls}\nsleep 1\nexit {status}',
    }
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        done = subprocess.run(
            [ROOT / "launch" / "prepare_slurm.sh", "--input", "a b", "--output", "c"],
            env={
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "SLURM_CPUS_PER_TASK": "16",
                "RAY_PORT": str(port),
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (status, "")
    head, other, command = sorted(
        calls.read_text().splitlines(), key=lambda line: "--head" not in line
    )
    if other.startswith("mosaicbert"):
        other, command = command, other
    options = "--num-cpus=16 --disable-usage-stats --block"
    assert head == (
        f"token secret start --head --node-ip-address=127.0.0.1 --port={port} "
        f"--include-dashboard=false {options}"
    )
    assert other == f"token secret start --address=127.0.0.1:{port} {options}"
    assert command == f"mosaicbert prepare --cluster 127.0.0.1:{port} --input a b --output c"


def test_the_kubernetes_job_finds_its_head():
    text = (ROOT / "launch" / "prepare_kubernetes.yaml").read_text()
    service, job = yaml.safe_load_all(text)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert f"--address={name}-0.{service['metadata']['name']}:6379" in container["command"][2]
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    assert {volume["name"] for volume in pod["volumes"]} == {
        mount["name"] for mount in container["volumeMounts"]
    }
    done = subprocess.run(["bash", "-n"], input=container["command"][2], text=True, check=False)
    assert done.returncode == 0
