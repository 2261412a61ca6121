"""What importing the package brings along."""

import os
import subprocess
import sys

from tests.conftest import ROOT

# All that is imported in the course of any command, but for the model that is exported to PyTorch.
_IMPORT_ALL = """
import pkgutil, importlib, mosaicbert_jax, pallas_kernels
for package in (mosaicbert_jax, pallas_kernels):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if "__main__" not in module.name and "torch_model" not in module.name:
            importlib.import_module(module.name)
"""


def test_pytorch_is_not_imported_where_there_is_one(tmp_path):
    """It takes seconds, and loads CUDA's libraries beside JAX's."""
    (tmp_path / "torch.py").write_text("raise SystemExit('PyTorch is imported')")
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
