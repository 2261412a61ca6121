"""`pytest --gpu` on a machine without a GPU."""

import subprocess
import sys


def test_without_a_gpu_it_says_so():
    command = [sys.executable, "-m", "pytest", "--gpu", "-n", "0", "tests/kernels/test_row_sums.py"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 4
    assert "ERROR: --gpu: JAX finds no NVIDIA GPU" in said.stderr
