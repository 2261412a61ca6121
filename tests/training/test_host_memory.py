"""Memory that is kept from step to step."""

import sys

import pytest

from tests.conftest import run_process

_PROGRAM = """
import platform, resource, sys
from mosaicbert_jax.training.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import jax, jax.numpy as jnp

f = jax.jit(lambda x: x + 1)
x = jnp.ones(2**24)
for _ in range(3):
    f(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    f(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_page_faults_end():
    faults = {}
    for mode in ("keep", "default"):
        result = run_process([sys.executable, "-c", _PROGRAM, mode])
        assert result.returncode == 0, result.stderr
        faults[mode] = int(result.stdout)
    assert faults["keep"] * 10 < faults["default"]
