"""Memory that is kept from step to step."""

import sys

import pytest

from tests.conftest import run_process

# Blocks of the size of a step's temporary arrays, as XLA's CPU client asks for them.
_PROGRAM = """
import ctypes, resource, sys
from mosaicbert_jax.launch import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def use():
    block = libc.malloc(ctypes.c_size_t(2**26))
    libc.memset(block, 1, 2**26)
    libc.free(block)

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_page_faults_end():
    faults = {}
    for mode in ("keep", "default"):
        result = run_process([sys.executable, "-c", _PROGRAM, mode])
        assert result.returncode == 0, result.stderr
        faults[mode] = int(result.stdout)
    # A large page at a time, faults are few either way; at 4 kB, 16,384 a block.
    assert faults["keep"] < 10 < faults["default"]
