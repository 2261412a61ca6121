"""By what the kernels' tests run kernels: the interpreter, or a GPU with `pytest --gpu`."""

import os

import pytest

KERNELS = os.environ.get("MOSAICBERT_TEST_KERNELS", "interpret")
on_gpu = pytest.mark.on_gpu
